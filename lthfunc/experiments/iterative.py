"""Iterative pruning (Frankle & Carbin 2019, sec. 1): train, prune, rewind, repeat; with controls."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from lthfunc.argument_hints import described
from lthfunc.arguments import check_fields, public
from lthfunc.errors import ArgumentError, UserError, invalid
from lthfunc.experiments.rewinding_and_controls import RoundContext, Start, end_of, to_anchor
from lthfunc.experiments.task_schedules import in_turn
from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.rewinding import learning_rate_rewound
from lthfunc.sparsify.scores import Score, magnitude
from lthfunc.sparsify.structures import Select, unstructured
from lthfunc.sparsify.transforms import prune, ticket
from lthfunc.training.averaging import result_of
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.loop import fit_together, untrained_fits
from lthfunc.training.results import Checkpointer, Fit, Observer, Observers, as_observers
from lthfunc.training.trainer import Trainer, measure
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.model import Model, init
from lthfunc.trees.ops import count
from lthfunc.trees.rng import key
from lthfunc.trees.transformations import Transformation, compose
from lthfunc.trees.types import Masks, Ticket, TrainState

TICKET = "ticket"


class Plan(NamedTuple):
    """An experiment, ready to run with any seed.

    steps: length of a training. rounds: prunings, so rounds + 1 trainings (round 0 is dense). rate: fraction of
    the remaining weights to prune per round; or densities: share of all weights to keep, a number per round.
    score: (trained network, RoundContext) -> Score. tidy: what else pruning does (e.g. to layers that depend on pruned
    units). rewind: where pruned networks start; anchor_step: the step of the first training that they may be rewound
    to. eval_every: steps between two evaluations on the validation split. controls: what else is trained in every
    round, by name. from_trained: the model draws trained weights, so round 0 only measures them.
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

    def steps_of(self, number: int, variant: str) -> int:
        """Steps that a training takes: fewer than `steps` if it starts from a later anchor."""
        if self.from_trained and not number:
            return 0
        start = self.rewind if variant == TICKET else self.controls[variant]
        return self.steps - self.anchor_step if number and start.at_anchor else self.steps

    def pruning(self, number: int, score: Score) -> Transformation:
        """The pruning before a round."""
        pruning = partial(prune, score=score, allocate=self.allocate, select=self.select)
        return pruning(fraction=self.rate) if self.densities is None else pruning(density=self.densities[number - 1])

    def end_of(self, task: Task) -> int:
        """The step at which a training ends."""
        untrained = self.from_trained and not task.number
        return int(task.start.step) if untrained else end_of(task.start, self.steps)


class Task(NamedTuple):
    """A training that is ready to run. anchor: what pruned networks are rewound to; None: the training finds it."""

    seed: int
    number: int
    variant: str
    start: TrainState
    anchor: TrainState | None

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
    """An unfinished training. anchor: the dense training's, once it has passed it; None before, and for all others.

    For a method also: the number of its stage, its steps so far minus those of the state, and masks to compare.
    """

    fit: Fit
    anchor: TrainState | None = None
    stage: int = 0
    offset: int = 0
    recent: tuple[Masks, ...] = ()


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
        raise invalid("--rewind", f"step {plan.anchor_step}", expected)


def rounds(
    plan: Plan, seed: int, device: str = "cpu", done: Done | None = None
) -> Generator[list[Task], list[Round], None]:
    """The plan with one seed, round by round: yields the trainings of a round, and receives their results.

    A ticket and its controls start from the same masks and don't wait for each other, so the caller
    may run them in turn, in several processes, or as one vmapped program. With `done` it continues after an
    interruption, with the same bits as without one.
    """
    check(plan)
    finished = done.finished if done else frozenset()
    trained, anchor = (done.trained, done.anchor) if done else (None, None)
    for number in range(done.number if done else 0, plan.rounds + 1):
        again = done is not None and number == done.number  # its ticket is trained, but perhaps not all controls
        if trained is None or anchor is None:
            start = init(plan.model, seed, device)
        else:
            start = trained if again else _next_start(plan, seed, number, trained, anchor)
        tasks = [] if again else [Task(seed, number, TICKET, start, anchor)]
        if anchor is not None and number:
            now = RoundContext(plan.model, seed, number, anchor)
            tasks += [
                Task(seed, number, name, _made(name, control, start, now), anchor)
                for name, control in plan.controls.items()
                if (number, name) not in finished
            ]
        results = (yield tasks) if tasks else []
        for result in results:
            if result.variant == TICKET:
                trained, anchor = result.fit.state, result.anchor


def train_together(
    plan: Plan,
    tasks: Sequence[Task],
    observe: Observers | None = None,
    *,
    checkpointer: Checkpointer[Progress] | None = None,
    so_far: Sequence[Progress] | None = None,
) -> list[Round]:
    """Train tasks that start at the same step, several as one vmapped program; returns their results, in order.

    checkpointer: saves them while they train; so_far: what was saved of them, all at the same step.

    Raises Stopped if the checkpointer requests it.
    """
    starts, seeds = [task.start for task in tasks], [task.seed for task in tasks]
    fits = None if so_far is None else [each.fit for each in so_far]

    def fitted(until: int, anchors: Sequence[TrainState | None]) -> list[Fit]:
        def under_way(fits: Sequence[Fit]) -> list[Progress]:
            return [Progress(*each) for each in zip(fits, anchors, strict=True)]

        kept = None if checkpointer is None else checkpointer.of(under_way)
        states = starts if fits is None else [fit.state for fit in fits]
        return fit_together(
            plan.trainer, states, seeds=seeds, until=until, eval_every=plan.eval_every, observe=observe, so_far=fits,
            checkpointer=kept,
        )  # fmt: skip

    nothing = [None] * len(tasks)
    end = plan.end_of(tasks[0])
    if plan.from_trained and not tasks[0].number:
        fits = untrained_fits(plan.trainer, starts, checkpointer)
        anchors = [learning_rate_rewound(start, plan.anchor_step) for start in starts]
    elif tasks[0].anchor is None and plan.anchor_step:  # the dense training passes the anchor
        anchors = [each.anchor for each in so_far or () if each.anchor is not None]
        if not anchors:
            fits = fitted(plan.anchor_step, nothing)
            anchors = [fit.state for fit in fits]
        fits = fitted(end, anchors)
    else:
        anchors = [task.start if task.anchor is None else task.anchor for task in tasks]
        fits = fitted(end, nothing)
    fits = [fit._replace(state=result_of(fit.state)) for fit in fits]
    tests = measure(plan.trainer, [fit.best for fit in fits], plan.trainer.data.test)
    return [
        Round(task.number, task.variant, ticket(task.start), fit, test, anchor)
        for task, fit, test, anchor in zip(tasks, fits, tests, anchors, strict=True)
    ]


@public
def iterative(
    plan: Plan,
    seed: int = 0,
    *,
    device: str = "cpu",
    done: Done | None = None,
    announce: Announce | None = None,
    observe: Observer | None = None,
) -> Iterator[Round]:
    """Run a plan with one seed, yielding each training as it ends: the ticket of a round, then its controls.

    All trainings of a seed see the same batches in the same order. device: "cpu", "cuda", "cuda:1", … done: where an
    interrupted experiment stopped; it continues from there with the same bits. announce: called with each `Task`
    before it is trained. observe: called after each step with its number and, after an evaluation, the new `Point` of
    the validation curve (otherwise None). Returns an iterator of `Round`. Raises UserError where the plan cannot work,
    or a round would leave no weight.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> trainer = lf.make_trainer(model, data, optimizer=lf.adam(1e-3), batch_size=2)
    >>> plan = lf.Plan(model, trainer, steps=2, eval_every=1, rounds=2, rate=0.5)
    >>> [(each.number, lf.density(each.start.masks)) for each in lf.iterative(plan, seed=1)]
    [(0, 1.0), (1, 0.5), (2, 0.25)]
    """

    def trained(task: Task) -> Round:
        if announce is not None:
            announce(task)
        return train_together(plan, [task], as_observers(observe))[0]

    yield from in_turn(rounds(plan, seed, device, done), trained)


def _next_start(plan: Plan, seed: int, number: int, trained: TrainState, anchor: TrainState) -> TrainState:
    if plan.from_trained and number == 1:
        trained = learning_rate_rewound(trained, plan.steps)  # where its training would have ended
    now = RoundContext(plan.model, seed, number, anchor)
    # A score that uses data may draw random numbers (dropout).
    with seeded_generators(key(seed, "pruning", number), trained.step.device):
        pruned = plan.tidy(plan.pruning(number, plan.score(trained, now))(trained))
    _check_state("tidy", pruned)
    if not count(pruned.masks).kept:
        raise UserError(f"--rounds: no weight is left in round {number} at this --rate; use fewer rounds")
    return _made("rewind", plan.rewind, pruned, now)


def _made(name: str, start: Start, pruned: TrainState, now: RoundContext) -> TrainState:
    return _check_state(name, start.make(pruned, now))


def _check_state(name: str, found: TrainState) -> TrainState:
    if not isinstance(found, TrainState):
        raise ArgumentError(f"Plan: {name} returned {described(found)} (expected a function that returns a TrainState)")
    return found
