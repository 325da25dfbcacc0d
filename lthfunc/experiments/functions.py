"""Names of settings into functions: scores, allocations, structures, rewindings, by table or from a user's module."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, Rewind, is_own, parse_structure
from lthfunc.experiments.resolve import listed
from lthfunc.experiments.starting import REWINDINGS, RoundContext, Start
from lthfunc.plugins import guarded, load_plugin
from lthfunc.sparsify.activations import input_moments, wanda
from lthfunc.sparsify.allocation import Allocate, globally, layerwise
from lthfunc.sparsify.budgets import balanced, erdos_renyi, erk, globally_with_minimum, lamp, uniform
from lthfunc.sparsify.dependencies import dependencies, without_dead_units
from lthfunc.sparsify.gradient_scores import fisher, grasp, movement, snip, taylor
from lthfunc.sparsify.mask_criteria import distance_moved, large_init, large_init_large_final, magnitude_increase
from lthfunc.sparsify.scores import Score, magnitude, random_scores
from lthfunc.sparsify.selection import Select, unstructured
from lthfunc.sparsify.structures import blocks, n_of_m, per_output, units
from lthfunc.sparsify.synflow import synflow
from lthfunc.tracebacks import first_line, user_location
from lthfunc.training.batches import sample_batches
from lthfunc.training.losses import Loss, cross_entropy
from lthfunc.training.steps import forward_of, loss_of
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks, clone, leaf_difference, masked_like, to_device
from lthfunc.trees.rng import key
from lthfunc.trees.transformations import Transformation, compose
from lthfunc.trees.types import Batch, Dataset, TrainState

#: Batches that a score of data looks at.
_BATCHES = 10


class Scored(NamedTuple):
    """What a score may be made of. trained: the network to be pruned; anchor: what it may be rewound to.

    batch_count: batches that a score of data looks at.
    """

    model: Model
    data: Dataset
    batch_size: int
    lr: float
    seed: int
    number: int
    trained: TrainState
    anchor: TrainState
    loss: Loss = cross_entropy
    batch_count: int = _BATCHES

    def batches(self) -> list[Batch]:
        """Scaled training batches, others in each round."""
        drawn = sample_batches(self.data, self.batch_size, self.batch_count, key(self.seed, "score", self.number))
        return to_device(drawn, self.trained.step.device)


def _of_loss(make: Callable[..., Score]) -> Callable[[Scored], Score]:
    return lambda now: make(loss_of(now.model, now.trained.buffers, now.loss), now.batches())


_SCORES: dict[str, Callable[[Scored], Score]] = {
    "magnitude": lambda now: magnitude,
    "random": lambda now: random_scores(now.seed, "score"),
    "large-init": lambda now: large_init(now.anchor.params),
    "magnitude-increase": lambda now: magnitude_increase(now.anchor.params),
    "distance-moved": lambda now: distance_moved(now.anchor.params),
    "large-init-large-final": lambda now: large_init_large_final(now.anchor.params),
    "movement": lambda now: movement(loss_of(now.model, now.trained.buffers, now.loss), now.batches(), now.lr),
    "taylor": _of_loss(taylor),
    "fisher": _of_loss(fisher),
    "snip": _of_loss(snip),
    "grasp": _of_loss(grasp),
    "synflow": lambda now: synflow(forward_of(now.model, now.trained.buffers), now.data.shape),
    "wanda": lambda now: wanda(input_moments(now.model, now.trained, [x for x, _ in now.batches()])),
}


def score_of(name: str) -> Callable[[Scored], Score]:
    """A score by its name, or a function ``params, masks -> scores`` as package.module:function."""
    if name in _SCORES:
        return _SCORES[name]
    own = guarded("--score", name, dict)
    return lambda now: own


def allocation_of(config: Config) -> Allocate:
    """An allocation by its name, or a function ``scores, masks, fraction -> keep counts``."""
    made: dict[str, Callable[[], Allocate]] = {
        "global": lambda: globally_with_minimum(config.floor) if config.floor else globally,
        "layerwise": lambda: layerwise(config.layer_rate),
        "uniform": lambda: uniform(config.floor),
        "er": lambda: erdos_renyi(config.floor),
        "erk": lambda: erk(config.floor),
        "balanced": lambda: balanced(config.floor),
        "lamp": lambda: lamp,
    }
    if config.allocate in made:
        return made[config.allocate]()
    return guarded("--allocate", config.allocate, dict)


def densities_of(config: Config) -> tuple[float, ...] | None:
    """Densities after each round, where no rate gives them; a user's own function is ``rounds -> densities``."""
    if config.densities is None:
        return None
    if not is_own(config.densities):
        return tuple(listed(config.densities))
    own = load_plugin("--densities", config.densities)
    try:
        values = [float(value) for value in own(config.rounds)]
    except (Exception, SystemExit) as error:
        what = f"{config.densities!r} called with {config.rounds}"
        raise UserError(f"--densities: {what} fails{user_location(error)}: {first_line(error)}") from error
    if len(values) != config.rounds:
        raise invalid("--densities", config.densities, f"a function that returns {config.rounds} densities (--rounds)")
    return tuple(listed(",".join(map(repr, values))))


def structure_of(config: Config, model: Model) -> Select:
    """A structure by its name, or a function ``scores, masks, keep -> masks``. The output layer keeps its units."""
    kind, (first, second) = parse_structure(config.structure)
    made: dict[str, Callable[[], Select]] = {
        "unstructured": lambda: unstructured,
        "per-output": lambda: per_output(config.exempt),
        "units": lambda: units((*config.exempt, *(name for name in model.prunable if name == model.output))),
        "n:m": lambda: n_of_m(first, second, config.exempt),
        "blocks": lambda: blocks(first, second, config.exempt),
    }
    if kind in made:
        return made[kind]()
    return guarded("--structure", kind, dict)


def tidying_of(structure: str, model: Model, shape: tuple[int, ...]) -> Transformation:
    """What pruning does besides: where whole units go, what depends on them goes as well."""
    if structure != "units":
        return compose()
    found = dependencies(model, shape)
    return lambda state: without_dead_units(state, found)


def rewinding_of(rewind: Rewind, per_epoch: int) -> tuple[Start, int]:
    """(where pruned networks start, the anchor's step).

    The user's own is ``pruned, anchor -> state``; the masks of what it returns are applied to its params.
    """
    step = rewind.at * per_epoch if rewind.kind == "epoch" else rewind.at
    if rewind.kind in REWINDINGS:
        return REWINDINGS[rewind.kind], step
    own = guarded("--rewind", rewind.kind, TrainState)

    def make(pruned: TrainState, now: RoundContext) -> TrainState:
        start: TrainState = own(*clone((pruned, now.anchor)))
        for ours, theirs in (
            (pruned.params, start.params),
            (pruned.buffers, start.buffers),
            (pruned.masks, start.masks),
        ):
            difference = leaf_difference(theirs, ours) if isinstance(theirs, dict) else "it holds no dictionary"
            if difference is not None:
                raise UserError(f"--rewind: {rewind.kind!r} returned another network: {difference}")
        # Pruned weights are zero, whatever it returned: the anchor's values, say, are what is naturally returned.
        return start._replace(params=apply_masks(start.params, start.masks), opt=masked_like(start.opt, start.masks))

    return Start(make, at_anchor=False), 0
