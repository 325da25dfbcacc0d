"""From names in settings to functions (scores, allocations, structures, rewindings), the library's or a user's."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import ALLOCATIONS, GROWTHS, REWINDINGS, SCORES, STRUCTURES
from lthfunc.deployment.compaction.dependency_groups import dependency_groups
from lthfunc.errors import UserError, invalid, prefixed
from lthfunc.experiments.config import Config, filled
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.resolve import listed
from lthfunc.experiments.rewinding_and_controls import RoundContext, Start, start_of
from lthfunc.plugins import is_own, load_plugin
from lthfunc.printable import a_or_an
from lthfunc.registry import Offered
from lthfunc.sparsify.activations import input_moments
from lthfunc.sparsify.allocation import Allocate, globally, layerwise
from lthfunc.sparsify.budgets import globally_with_minimum
from lthfunc.sparsify.dependencies import dependencies, without_dead_units
from lthfunc.sparsify.gradient_scores import LossOfParams, gradient_in_training
from lthfunc.sparsify.group_selection import whole_groups
from lthfunc.sparsify.groups import HEADS, RESIDUAL, DependencyGroup, without_dead_groups
from lthfunc.sparsify.growth import ties_drawn
from lthfunc.sparsify.scores import Score, Scores, random_scores
from lthfunc.sparsify.structures import Select, units
from lthfunc.sparsify.topology import ch3_l3
from lthfunc.tracebacks import call_user_function
from lthfunc.training.batches import sample_batches
from lthfunc.training.engines.interface import Work
from lthfunc.training.loss_of_params import forward_of, loss_of
from lthfunc.training.losses import Loss, cross_entropy
from lthfunc.training.schedules import Schedule, rate_at
from lthfunc.trees.model import Model
from lthfunc.trees.ops import to_device
from lthfunc.trees.rng import key
from lthfunc.trees.transformations import Transformation, compose
from lthfunc.trees.types import Batch, Dataset, Masks, Params, TrainState

#: Batches for a score that uses data.
_BATCHES = 10


class ScoreContext(NamedTuple):
    """What a score may use. trained: the network to be pruned; anchor: what it may be rewound to.

    batch_count: batches for a score that uses data; purpose: decides which are drawn.
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
    purpose: str = "score"

    def batches(self) -> list[Batch]:
        """Scaled training batches, different ones in each round."""
        drawn = sample_batches(self.data, self.batch_size, self.batch_count, key(self.seed, self.purpose, self.number))
        return to_device(drawn, self.trained.step.device)

    @property
    def offered(self) -> Offered:
        """The arguments that a score may have, by name."""
        model, trained = self.model, self.trained
        return Offered(
            seed=lambda: self.seed,
            lr=lambda: self.lr,
            anchor=lambda: self.anchor.params,
            batches=self.batches,
            loss=lambda: loss_of(model, trained.buffers, self.loss),
            forward=lambda: forward_of(model, trained.buffers),
            shape=lambda: self.data.shape,
            moments=lambda: input_moments(model, trained, [x for x, _ in self.batches()]),
        )


def score_of(name: str) -> Callable[[ScoreContext], Score]:
    """A score by its name; a user's is ``params, masks -> scores``, or returns such a function."""
    SCORES.load(name)  # import errors are reported before anything is trained
    return lambda now: SCORES.make(name, now.offered, dict, "Score")


def scoring_of(config: Config, work: Work, data: Dataset) -> Callable[[TrainState, RoundContext], Score]:
    """The score of a round, for the network to be pruned."""
    scoring = score_of(filled(config.score))
    about = (work.model, data, filled(config.batch_size), filled(config.lr))
    return lambda trained, now: scoring(ScoreContext(*about, now.seed, now.number, trained, now.anchor, work.loss))


def random_score(seed: int) -> Score:
    """Uniform random scores, the same in every round, so that masks nest."""
    return random_scores(seed, "score")


def random_growth_score(seed: int, step: int) -> Score:
    """Uniform random scores, others in every update."""
    return random_scores(seed, "growth", step)


def gradient_growth_score(loss: LossOfParams, batches: Sequence[Batch]) -> Score:
    """The size of the dense gradient on a batch, pruned weights included."""
    (batch,) = batches
    gradient = gradient_in_training(loss, batch)

    def score(params: Params, masks: Masks) -> Scores:
        return {name: leaf.abs() for name, leaf in gradient(params, masks).items()}

    return score


def topological_growth_score(seed: int, step: int) -> Score:
    """Paths of three links; missing links with equal numbers of them, often none, are in an order drawn anew."""

    def score(params: Params, masks: Masks) -> Scores:
        return ties_drawn(ch3_l3(params, masks), seed, step)

    return score


@dataclass(frozen=True)
class Growing:
    """Makes a growth score by its name, of what a score may use, one batch, and the step (`number`).

    random, by_gradient: whether it is that of SET, which goes without a number for each weight, or of RigL. rates:
    the learning rates of a training's steps, if they are known.
    """

    name: str
    random: bool
    by_gradient: bool
    rates: Schedule | None = None

    def __call__(self, now: ScoreContext) -> Score:
        """The score of an update."""
        of_score = now._replace(batch_count=1, purpose="growth").offered.data
        del of_score["anchor"]  # an update knows none
        if self.rates is None:
            del of_score["lr"]
        offered = Offered({**of_score, "step": lambda: now.number})
        score: Score = GROWTHS.make(self.name, offered, dict, "Score")
        return score

    def rate_at(self, step: int) -> float:
        """The learning rate of a step; 0 where it is unknown."""
        return 0.0 if self.rates is None else float(rate_at(self.rates, torch.tensor(step)))


def growth_of(name: str, rates: Schedule | None = None) -> Growing:
    """What grows, by its name. rates: the learning rates of a training's steps, for scores of the user's own that
    take `lr`. Raises UserError for an unknown one."""
    function = GROWTHS.load(name)
    return Growing(name, function is random_growth_score, function is gradient_growth_score, rates)


def allocation_of(config: Config) -> Allocate:
    """An allocation by its name; a user's is ``scores, masks, fraction -> keep counts``."""
    offered = {"min_layer_weights": config.min_layer_weights, "layer_rate": config.layer_rate}
    made: Allocate = ALLOCATIONS.make(filled(config.allocate), offered, dict, "Allocate")
    return made


def global_allocation(min_layer_weights: int) -> Allocate:
    """One threshold, with or without a minimum for each layer."""
    return globally_with_minimum(min_layer_weights) if min_layer_weights else globally


def layerwise_allocation(layer_rate: Mapping[str, float]) -> Allocate:
    """The same rate in every layer, except those with a rate of their own."""
    return layerwise(layer_rate)


def densities_of(config: Config) -> tuple[float, ...] | None:
    """Densities after each round, unless a rate determines them; a user's function is ``rounds -> densities``."""
    if config.densities is None:
        return None
    if not is_own(config.densities):
        return tuple(listed(config.densities))
    own, rounds = load_plugin("--densities", config.densities), filled(config.rounds)
    values = call_user_function("--densities", config.densities, lambda: [float(each) for each in own(rounds)])
    if len(values) != rounds:
        raise invalid("--densities", config.densities, f"a function that returns {rounds} densities (--rounds)")
    return tuple(listed(",".join(map(repr, values))))


def method_of(config: Config, plan: Plan, rates: Schedule) -> Plan:
    """What a method makes of a plan; a user's is ``plan -> plan``. rates: the learning rates of a training's steps.

    Raises UserError.
    """
    offered = {name: getattr(config, name) for name in METHODS.settings} | {"plan": plan, "rates": rates}
    made = METHODS.make(config.method, offered)
    if callable(made):  # a user's, with parameters that are not settings
        made = call_user_function("--method", config.method, lambda: made(plan))
    if not isinstance(made, Plan):
        raise UserError(f"--method: {config.method!r} returned {a_or_an(type(made).__name__)}, not a Plan")
    if made.dense != plan.dense:
        raise UserError(f"--method: {config.method!r} changed `dense` of the plan; use --dense or --no-dense instead")
    return made


def structure_of(config: Config, model: Model, shape: tuple[int, ...]) -> Select:
    """A structure by its name; a user's is ``scores, masks, keep -> masks``."""
    offered = Offered(
        exempt=lambda: config.exempt, model=lambda: model, groups=lambda: _groups(model, shape),
        group_multiple=lambda: config.group_multiple,
    )  # fmt: skip
    made: Select = STRUCTURES.make(config.structure, offered, dict, "Select")
    return made


@functools.lru_cache(maxsize=1)  # for the structure and its tidying; of a transformer they take seconds
def _groups(model: Model, shape: tuple[int, ...]) -> tuple[DependencyGroup, ...]:
    with prefixed("--structure"):
        return dependency_groups(model, shape)


def units_but_outputs(exempt: Sequence[str], model: Model) -> Select:
    """Whole units of all layers but the output layer, whose units are the classes."""
    return units((*exempt, *(name for name in model.prunable if name == model.output)))


def whole_heads(exempt: Sequence[str], groups: Sequence[DependencyGroup], group_multiple: int) -> Select:
    """Whole attention heads."""
    return _groups_of_kind("heads", HEADS, exempt, groups, group_multiple)


def residual_dimensions(exempt: Sequence[str], groups: Sequence[DependencyGroup], group_multiple: int) -> Select:
    """Whole dimensions of residual streams."""
    return _groups_of_kind("residual", RESIDUAL, exempt, groups, group_multiple)


def groups_of_all_kinds(exempt: Sequence[str], groups: Sequence[DependencyGroup], group_multiple: int) -> Select:
    """Whatever goes together: heads, dimensions of residual streams, neurons and channels."""
    return _groups_of_kind("groups", None, exempt, groups, group_multiple)


def _groups_of_kind(
    structure: str, kind: str | None, exempt: Sequence[str], groups: Sequence[DependencyGroup], group_multiple: int
) -> Select:
    of_kind = [group for group in groups if kind in (None, group.kind)]
    if not of_kind:
        what = {HEADS: "an attention of several heads", RESIDUAL: "residual additions"}.get(str(kind), "groups")
        raise invalid("--structure", structure, f"a structure that this network has, which is without {what}")
    found = [
        group for group in of_kind
        if not any(fnmatch.fnmatchcase(part.name, pattern) for part in group.parts for pattern in exempt)
    ]  # fmt: skip
    if not found:
        raise invalid("--exempt", ", ".join(exempt), f"patterns that leave some of what --structure {structure} prunes")
    return whole_groups(found, multiple=group_multiple)


def tidying_of(structure: str, model: Model, shape: tuple[int, ...]) -> Transformation:
    """What else pruning does: if whole units are pruned, what depends on them is pruned as well."""
    if structure in ("heads", "residual", "groups"):
        groups = _groups(model, shape)
        return lambda state: without_dead_groups(state, groups)
    if structure != "units":
        return compose()
    found = dependencies(model, shape)
    return lambda state: without_dead_units(state, found)


def rewinding_of(rewind: str, per_epoch: int, steps: int) -> tuple[Start, int]:
    """(where pruned networks start, the anchor's step). steps: of a training."""
    _, numbers = REWINDINGS.find(rewind) or (None, {})
    early = numbers.get("epoch", 0) * per_epoch + round(numbers.get("percent", 0) * steps / 100)
    return start_of(REWINDINGS, rewind), numbers.get("step", early)
