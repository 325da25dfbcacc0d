"""Rounds of pruning (Frankle & Carbin 2019, sec. 1): train, prune, rewind, repeat; with controls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lthfunc.argument_hints import described
from lthfunc.arguments import check_fields
from lthfunc.errors import ArgumentError, UserError, invalid
from lthfunc.experiments.rewinding_and_controls import (
    Anchor,
    RoundContext,
    Start,
    anchor_at_rest,
    end_of,
    made_anchor,
    to_anchor,
)
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.density_schedules import prune_to_densities
from lthfunc.sparsify.rewinding import learning_rate_rewound
from lthfunc.sparsify.scores import Score, magnitude
from lthfunc.sparsify.structures import Select, unstructured
from lthfunc.sparsify.transforms import prune
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.mask_updates import MaskUpdates
from lthfunc.training.packed_fits import AnyFit
from lthfunc.training.results import Fit
from lthfunc.training.trainer import Trainer
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.model import Model, init
from lthfunc.trees.ops import count, density as current_density, full_masks
from lthfunc.trees.packed_states import AnyState, at_rest
from lthfunc.trees.rng import key
from lthfunc.trees.transformations import Transformation, compose
from lthfunc.trees.types import Ticket, TrainState

TICKET = "ticket"
#: (trained network, RoundContext, density) -> the pruned network.
Pruner = Callable[[TrainState, RoundContext, float], TrainState]


class Plan(NamedTuple):
    """An experiment, ready to run with any seed.

    steps: length of a training. rounds: prunings, so rounds + 1 trainings (round 0 is dense). rate: fraction of
    the remaining weights to prune per round; or densities: share of all weights to keep, a number per round.
    score: (trained network, RoundContext) -> Score. tidy: what else pruning does (e.g. to layers that depend on pruned
    units). rewind: where pruned networks start; anchor_step: the step of the first training that they may be rewound
    to. eval_every: steps between two evaluations on the validation split. controls: what else is trained in every
    round, by name. from_trained: the model draws trained weights, so round 0 only measures them.

    dense: whether there is a round 0, which trains the dense network. at_init: every round prunes the dense network at
    the anchor, instead of the last round's trained one. prunings: of a round, with scores computed before each.
    updates: how masks change in the trainings of each pruned round (round 1 first); none where empty. through:
    networks of which masks are computed, trained in place of the plan's, likewise. pruner: how the trained network is
    pruned, where not by score, allocate and select; pruning_steps: of the dense trainings that this takes.
    """

    model: Model
    trainer: Trainer
    steps: int
    eval_every: int
    rounds: int = 5
    rate: float = 0.2
    densities: tuple[float, ...] | None = None
    score: Callable[[TrainState, RoundContext], Score] = lambda trained, now: magnitude
    allocate: Allocate = globally
    select: Select = unstructured
    tidy: Transformation = compose()
    rewind: Start = Start(to_anchor, at_anchor=True)
    anchor_step: int = 0
    controls: Mapping[str, Start] = {}
    from_trained: bool = False
    dense: bool = True
    at_init: bool = False
    prunings: int = 1
    updates: tuple[MaskUpdates, ...] = ()
    through: tuple[TrainedMasks, ...] = ()
    pruner: Pruner | None = None
    pruning_steps: int = 0

    @property
    def first(self) -> int:
        """The number of the first round."""
        return 0 if self.dense else 1

    def steps_of(self, number: int, variant: str) -> int:
        """Steps that a training takes: fewer than `steps` if it starts from a later anchor."""
        if self.from_trained and not number:
            return 0
        start = self.rewind if variant == TICKET else self.controls[variant]
        return self.steps - self.anchor_step if number and start.at_anchor else self.steps

    def density_of(self, number: int) -> float:
        """The density that a round is pruned to, as planned."""
        if number == 0 or self.densities is None:
            return (1 - self.rate) ** number
        return self.densities[number - 1]

    def pruning(self, number: int, score: Score) -> Transformation:
        """The pruning before a round."""
        pruning = partial(prune, score=score, allocate=self.allocate, select=self.select)
        if self.at_init or self.prunings > 1:
            how = {"score": score, "allocate": self.allocate, "select": self.select}
            return partial(_to_density, density=self.density_of(number), prunings=self.prunings, how=how)
        return pruning(fraction=self.rate) if self.densities is None else pruning(density=self.densities[number - 1])

    def updates_of(self, number: int) -> MaskUpdates | None:
        """How masks change in the trainings of a round."""
        return self.updates[number - 1] if number and self.updates else None

    def masks_through(self, number: int) -> TrainedMasks | None:
        """What is trained in a round in place of the network, if its masks are."""
        return self.through[number - 1] if number and self.through else None

    def end_of(self, task: Task) -> int:
        """The step at which a training ends."""
        untrained = self.from_trained and not task.number
        return int(task.start.step) if untrained else end_of(task.start, self.steps)


class Task(NamedTuple):
    """A training that is ready to run.

    start: what it is trained from, on survivors where that takes less memory. anchor: what pruned networks are rewound
    to; None: the training finds it.
    """

    seed: int
    number: int
    variant: str
    start: AnyState
    anchor: Anchor | None

    @property
    def key(self) -> tuple[int, int, str]:
        """Identifies it within a run: seed, round and variant."""
        return self.seed, self.number, self.variant

    @property
    def description(self) -> str:
        """Its name in messages."""
        return f"seed {self.seed}, round {self.number}" + ("" if self.variant == TICKET else f" ({self.variant})")


class Round(NamedTuple):
    """A finished training. number: prunings before it; variant: "ticket" or a control's name.

    start: what it was trained from. fit: the training. test: of the network that validation chose, evaluated once.
    anchor: what the next round is rewound to.
    """

    number: int
    variant: str
    start: Ticket
    fit: Fit
    test: Evaluation
    anchor: TrainState


class Progress(NamedTuple):
    """An unfinished training. anchor: the dense training's, once it has passed it; None before, and for all others."""

    fit: AnyFit
    anchor: TrainState | None = None


class Done(NamedTuple):
    """Where an interrupted experiment stopped: its last finished ticket, and every finished (round, variant)."""

    number: int
    trained: TrainState
    anchor: TrainState
    finished: frozenset[tuple[int, str]] = frozenset()


#: Called with each training before it starts.
Announce = Callable[[Task], None]


def check(plan: Plan) -> None:
    """Raise UserError if the plan cannot work."""
    check_fields(plan)
    if plan.anchor_step >= plan.steps:
        expected = f"a point before the end of training (step {plan.steps})"
        raise invalid("rewind", f"step {plan.anchor_step}", expected)


def rounds(
    plan: Plan, seed: int, device: str = "cpu", done: Done | None = None
) -> Generator[list[Task], list[Round], None]:
    """The plan with one seed, round by round: yields the trainings of a round, and receives their results.

    A ticket and its controls start from the same masks and don't wait for each other, so the caller
    may run them in turn, in several processes, or as one vmapped program. With `done` it continues after an
    interruption, with the same bits as without one.
    """
    check(plan)
    finished, begun = (done.finished, done.number) if done else (frozenset[tuple[int, str]](), None)
    trained, anchor = (done.trained, anchor_at_rest(done.anchor, plan.model, seed)) if done else (None, None)
    del done
    if begun is None and not plan.dense:
        anchor = anchor_at_rest(init(plan.model, seed, device), plan.model, seed)
    # While a round trains, nothing here is as large as the network, except for a later anchor.
    for number in range(plan.first if begun is None else begun, plan.rounds + 1):
        again = number == begun  # its ticket is trained, but perhaps not all controls
        controls = [name for name in plan.controls if number and (number, name) not in finished]
        tasks = _tasks(plan, seed, device, number, trained, anchor, [] if again else [TICKET], controls)
        trained = trained if again else None
        trained, anchor = _after((yield tasks) if tasks else [], trained, anchor, plan.model, seed)


def _tasks(
    plan: Plan, seed: int, device: str, number: int, trained: TrainState | None, anchor: Anchor | None,
    tickets: list[str], controls: list[str],
) -> list[Task]:  # fmt: skip
    """The trainings of a round. trained: what is pruned; None: the anchor, or, of a round without one, nothing."""
    if anchor is None:
        return [Task(seed, number, name, init(plan.model, seed, device), None) for name in tickets]
    if not tickets and not controls:
        return []
    whole = made_anchor(anchor, plan.model, device)
    start = whole if trained is None else trained
    start = _next_start(plan, seed, number, start, whole) if tickets else start
    now, made = RoundContext(plan.model, seed, number, whole), [(name, start) for name in tickets]
    made += [(name, _made(name, plan.controls[name], start, now)) for name in controls]
    return [Task(seed, number, name, at_rest(state), anchor) for name, state in made]


def _after(
    results: Sequence[Round], trained: TrainState | None, anchor: Anchor | None, model: Model, seed: int
) -> tuple[TrainState | None, Anchor | None]:
    """(what the next round prunes, what it is rewound to)."""
    for result in results:
        if result.variant == TICKET:
            trained = result.fit.state
            anchor = anchor_at_rest(result.anchor, model, seed) if anchor is None else anchor
    return trained, anchor


def _to_density(state: TrainState, density: float, prunings: int, how: dict[str, Any]) -> TrainState:
    """Prune to a density in several steps, of the same share of what is left each."""
    now = current_density(state.masks)
    densities = [now * (density / now) ** (k / prunings) for k in range(1, prunings)] + [density]
    return prune_to_densities(densities, **how)(state)


def _next_start(plan: Plan, seed: int, number: int, trained: TrainState, anchor: TrainState) -> TrainState:
    if plan.at_init:
        trained = anchor._replace(masks=full_masks(anchor.params, plan.model.prunable), opt=())
    elif plan.from_trained and number == 1:
        trained = learning_rate_rewound(trained, plan.steps)  # where its training would have ended
    now = RoundContext(plan.model, seed, number, anchor)
    # A score that uses data may draw random numbers (dropout).
    with seeded_generators(key(seed, "pruning", number), trained.step.device):
        if plan.pruner is not None:
            pruned = plan.pruner(trained, now, plan.density_of(number))
        else:
            pruned = plan.pruning(number, plan.score(trained, now))(trained)
        pruned = plan.tidy(pruned)
    _check_state("tidy", pruned)
    if not count(pruned.masks).kept:
        raise UserError(f"rounds: no weight is left in round {number}; a higher density, or fewer rounds, leaves some")
    return _made("rewind", plan.rewind, pruned, now)


def _made(name: str, start: Start, pruned: TrainState, now: RoundContext) -> TrainState:
    return _check_state(name, start.make(pruned, now))


def _check_state(name: str, found: TrainState) -> TrainState:
    if not isinstance(found, TrainState):
        raise ArgumentError(f"Plan: {name} returned {described(found)} (expected a function that returns a TrainState)")
    return found
