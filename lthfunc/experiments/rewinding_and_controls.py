"""Where pruned networks and their controls start: functions (pruned network, RoundContext) -> what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from lthfunc.catalog.pruning import StartEntry
from lthfunc.errors import UserError
from lthfunc.plugins import guarded
from lthfunc.registry import Registry
from lthfunc.sparsify.allocation import fixed_counts
from lthfunc.sparsify.rewinding import (
    constant_sign,
    finetuned,
    inverted_masks,
    learning_rate_rewound,
    reinitialised,
    rewound,
    shuffled_masks,
)
from lthfunc.sparsify.scores import random_scores
from lthfunc.sparsify.structures import unstructured
from lthfunc.sparsify.transforms import prune
from lthfunc.trees.model import Model, init
from lthfunc.trees.ops import apply_masks, clone, density, full_masks, leaf_difference, masked_like, same_bits
from lthfunc.trees.packed_states import AnyState
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState


class RoundContext(NamedTuple):
    """The state of an experiment when it prunes. number: of the round that starts."""

    model: Model
    seed: int
    number: int
    anchor: TrainState


class Drawn(NamedTuple):
    """An anchor that a seed draws. It takes no memory, as it is made again whenever it is asked for."""

    seed: int


#: What pruned networks are rewound to, as it is kept while others train.
Anchor = TrainState | Drawn


def anchor_at_rest(anchor: TrainState, model: Model, seed: int) -> Anchor:
    """The anchor in the form that takes less memory, to the same bits."""
    if int(anchor.step):
        return anchor
    drawn = made_anchor(Drawn(seed), model, anchor.step.device)
    return Drawn(seed) if same_bits(drawn[:2], anchor[:2]) else anchor  # params and buffers


def made_anchor(anchor: Anchor, model: Model, device: torch.device | str) -> TrainState:
    """The anchor itself. device: where one that is drawn comes to be."""
    return init(model, anchor.seed, device) if isinstance(anchor, Drawn) else anchor


def end_of(start: AnyState, steps: int) -> int:
    """The step at which a training of `steps` ends; if it starts at that step, it takes as many more."""
    begun = int(start.step)
    return steps if begun < steps else begun + steps


class Start(NamedTuple):
    """make: (pruned network, RoundContext) -> what is trained. at_anchor: whether that starts at the anchor's step."""

    make: Callable[[TrainState, RoundContext], TrainState]
    at_anchor: bool


def start_of(registry: Registry[StartEntry], name: str) -> Start:
    """A rewinding or control by its name; a user's is ``pruned, anchor -> state``.

    The masks in a user's result are applied to its params. Raises UserError.
    """
    function, found = registry.load(name), registry.find(name)
    if found is not None:
        return Start(function, found[0].at_anchor)
    own = guarded(registry.option, name, function, TrainState)

    def make(pruned: TrainState, now: RoundContext) -> TrainState:
        start: TrainState = own(*clone((pruned, now.anchor)))
        for ours, theirs in zip(pruned[:3], start[:3], strict=True):  # params, buffers, masks
            difference = leaf_difference(theirs, ours) if isinstance(theirs, dict) else "it has no dictionary"
            if difference is not None:
                raise UserError(f"{registry.option}: {name!r} returned another network: {difference}")
        # Pruned weights are set to zero, since a user's function may e.g. return all of the anchor's values.
        return start._replace(params=apply_masks(start.params, start.masks), opt=masked_like(start.opt, start.masks))

    return Start(make, at_anchor=False)


def to_anchor(pruned: TrainState, now: RoundContext) -> TrainState:
    """The anchor's weights under the masks."""
    return rewound(pruned, now.anchor)


def to_signs(pruned: TrainState, now: RoundContext) -> TrainState:
    """The signs of the anchor's weights."""
    return constant_sign(pruned, now.anchor)


def rate_to_anchor(pruned: TrainState, now: RoundContext) -> TrainState:
    """The trained weights, at the anchor's step."""
    return learning_rate_rewound(pruned, int(now.anchor.step))


def trained_weights(pruned: TrainState, now: RoundContext) -> TrainState:
    """The trained weights, from step 0."""
    return learning_rate_rewound(pruned)


def at_last_rate(pruned: TrainState, now: RoundContext) -> TrainState:
    """The trained weights, at the last step."""
    return finetuned(pruned)


def drawn_anew(pruned: TrainState, now: RoundContext) -> TrainState:
    """New random weights."""
    return reinitialised(pruned, now.model, key(now.seed, "rewind-reinit", now.number))


def reinit(pruned: TrainState, now: RoundContext) -> TrainState:
    """New random weights, different from the rewinding's."""
    return reinitialised(pruned, now.model, key(now.seed, "control-reinit", now.number))


def random_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """A random mask with as many weights, drawn uniformly from the whole network."""
    full = full_masks(pruned.params, tuple(pruned.masks))
    drawn = prune(density=density(pruned.masks), score=random_scores(now.seed, "control-random-mask"))
    return rewound(drawn(pruned._replace(masks=full)), now.anchor)


def layer_random_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """A random mask with as many weights in each layer, drawn uniformly, nested from round to round."""
    full = full_masks(pruned.params, tuple(pruned.masks))
    counts = fixed_counts({name: int(mask.sum()) for name, mask in pruned.masks.items()})
    drawn = prune(fraction=0, score=random_scores(now.seed, "control-layer-random-mask"), allocate=counts)
    return rewound(drawn(pruned._replace(masks=full)), now.anchor)


def shuffled_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """The mask shuffled within each layer."""
    return rewound(
        pruned._replace(masks=shuffled_masks(pruned.masks, key(now.seed, "control-shuffle", now.number))), now.anchor
    )


def inverted_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """As many weights in each layer, of those that the ticket lacks (all of them, if they are fewer)."""
    others = inverted_masks(pruned.masks)
    keep = fixed_counts(
        {name: int(torch.minimum(mask.sum(), others[name].sum())) for name, mask in pruned.masks.items()}
    )
    scores = random_scores(now.seed, "control-inverted-mask")(pruned.params, others)
    return rewound(pruned._replace(masks=unstructured(scores, others, keep(scores, others, 0.0))), now.anchor)
