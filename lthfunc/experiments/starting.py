"""Where a pruned network, or a control of it, starts from: functions, with the names that settings give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

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
from lthfunc.sparsify.selection import unstructured
from lthfunc.sparsify.transforms import prune
from lthfunc.trees.model import Model
from lthfunc.trees.ops import density, full_masks
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState


class RoundContext(NamedTuple):
    """Where an experiment stands when it prunes. number: of the round that begins."""

    model: Model
    seed: int
    number: int
    anchor: TrainState


def end_of(start: TrainState, steps: int) -> int:
    """The step that a training of `steps` goes on to: their end, or as many more where it starts there."""
    begun = int(start.step)
    return steps if begun < steps else begun + steps


class Start(NamedTuple):
    """make: (pruned network, situation) -> what is trained. at_anchor: whether that begins at the anchor's step."""

    make: Callable[[TrainState, RoundContext], TrainState]
    at_anchor: bool


def _drawn_anew(purpose: str) -> Start:
    def make(pruned: TrainState, now: RoundContext) -> TrainState:
        return reinitialised(pruned, now.model, key(now.seed, purpose, now.number))

    return Start(make, at_anchor=False)


def _random_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """As many weights, drawn uniformly from the whole network."""
    full = full_masks(pruned.params, tuple(pruned.masks))
    drawn = prune(density=density(pruned.masks), score=random_scores(now.seed, "control-random-mask"))
    return rewound(drawn(pruned._replace(masks=full)), now.anchor)


def _layer_random_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """As many weights in each layer, drawn uniformly from it, nested from round to round."""
    full = full_masks(pruned.params, tuple(pruned.masks))
    counts = fixed_counts({name: int(mask.sum()) for name, mask in pruned.masks.items()})
    drawn = prune(fraction=0, score=random_scores(now.seed, "control-layer-random-mask"), allocate=counts)
    return rewound(drawn(pruned._replace(masks=full)), now.anchor)


def _shuffled_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """As many weights in each layer, at other places."""
    return rewound(
        pruned._replace(masks=shuffled_masks(pruned.masks, key(now.seed, "control-shuffle", now.number))), now.anchor
    )


def _inverted_mask(pruned: TrainState, now: RoundContext) -> TrainState:
    """As many weights in each layer, of those that the ticket went without (all of them, where they are fewer)."""
    others = inverted_masks(pruned.masks)
    keep = fixed_counts(
        {name: int(torch.minimum(mask.sum(), others[name].sum())) for name, mask in pruned.masks.items()}
    )
    scores = random_scores(now.seed, "control-inverted-mask")(pruned.params, others)
    return rewound(pruned._replace(masks=unstructured(scores, others, keep(scores, others, 0.0))), now.anchor)


#: By the names of config.REWINDINGS; what `step:K` and `epoch:K` add is the anchor's step.
REWINDINGS: dict[str, Start] = {
    **dict.fromkeys(("init", "step", "epoch"), Start(lambda pruned, now: rewound(pruned, now.anchor), at_anchor=True)),
    "sign": Start(lambda pruned, now: constant_sign(pruned, now.anchor), at_anchor=True),
    "lr": Start(lambda pruned, now: learning_rate_rewound(pruned, int(now.anchor.step)), at_anchor=True),
    "none": Start(lambda pruned, now: learning_rate_rewound(pruned), at_anchor=False),
    "last-lr": Start(lambda pruned, now: finetuned(pruned), at_anchor=False),
    "reinit": _drawn_anew("rewind-reinit"),
}

#: By the names of config.CONTROLS.
CONTROLS: dict[str, Start] = {
    "reinit": _drawn_anew("control-reinit"),
    "random-mask": Start(_random_mask, at_anchor=True),
    "layer-random-mask": Start(_layer_random_mask, at_anchor=True),
    "shuffled-mask": Start(_shuffled_mask, at_anchor=True),
    "inverted-mask": Start(_inverted_mask, at_anchor=True),
}
