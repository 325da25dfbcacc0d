"""Iterative pruning (Frankle & Carbin 2019, sec. 1): train, prune, rewind, and again; with controls beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lthfunc.errors import UserError, invalid, unknown
from lthfunc.experiments.config import CONTROLS, Rewind
from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.rewinding import finetune, reinitialised, restart, shuffled
from lthfunc.sparsify.scores import Score, magnitude, random_scores
from lthfunc.sparsify.transforms import prune, ticket
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.evaluation import Quality, evaluate
from lthfunc.training.loop import Fit, Observer, Trainer, fit
from lthfunc.trees.model import Model, init
from lthfunc.trees.ops import count, density, full_masks
from lthfunc.trees.rng import key
from lthfunc.trees.types import Ticket, TrainState

TICKET = "ticket"


class Plan(NamedTuple):
    """An experiment, ready to run with any seed.

    steps: length of a training. rounds: prunings, so rounds + 1 trainings (round 0 is dense). rate: fraction of
    the remaining weights to prune per round. score: seed -> Score. eval_every: steps between two looks at the
    validation split.
    """

    model: Model
    trainer: Trainer
    steps: int
    eval_every: int
    rounds: int = 5
    rate: float = 0.2
    score: Callable[[int], Score] = lambda seed: magnitude
    allocate: Allocate = globally
    rewind: Rewind = Rewind("init")
    controls: tuple[str, ...] = ()

    @property
    def anchor_step(self) -> int:
        """The step that pruned networks are rewound to."""
        if self.rewind.kind == "epoch":
            return self.rewind.at * steps_per_epoch(len(self.trainer.data.train.x), self.trainer.batch_size)
        return self.rewind.at

    def steps_of(self, number: int, variant: str) -> int:
        """Steps that a training takes: less than `steps` where it starts from a later anchor."""
        rewinds = number > 0 and variant != "reinit"
        return self.steps - self.anchor_step if rewinds else self.steps


class Round(NamedTuple):
    """A finished training. number: prunings before it; variant: "ticket" or a control's name.

    start: what it was trained from. fit: the training. test: on the network that validation chose, read once.
    anchor: what the next round is rewound to.
    """

    number: int
    variant: str
    start: Ticket
    fit: Fit
    test: Quality
    anchor: TrainState


class Done(NamedTuple):
    """Where an interrupted experiment stands: its last finished ticket, and the controls of that round."""

    number: int
    trained: TrainState
    anchor: TrainState
    controls: frozenset[str] = frozenset()


#: Told what training begins: its round number, its variant and its start.
Announce = Callable[[int, str, TrainState], None]


def check(plan: Plan) -> None:
    """Raise UserError where the plan cannot work."""
    if plan.anchor_step >= plan.steps:
        text = f"{plan.rewind.kind}:{plan.rewind.at}"
        raise invalid("--rewind", text, f"a point before the end of training (step {plan.steps})")
    for control in plan.controls:
        if control not in CONTROLS:
            raise unknown("--control", control, CONTROLS)


def iterative(
    plan: Plan,
    seed: int = 0,
    *,
    device: str = "cpu",
    done: Done | None = None,
    announce: Announce | None = None,
    observe: Observer | None = None,
) -> Iterator[Round]:
    """Run the plan with one seed, yielding each training as it ends: the ticket of a round, then its controls.

    `done` goes on after an interruption; what follows has the same bits as without it. All trainings of a seed
    see the same batches in the same order.
    """
    check(plan)

    def trained_from(number: int, variant: str, start: TrainState, anchor: TrainState | None) -> Round:
        if announce is not None:
            announce(number, variant, start)
        so_far = None
        state = start
        if anchor is None:  # the dense round finds the anchor on its way
            anchor = start
            if plan.anchor_step:
                so_far = _fit(plan, start, seed, plan.anchor_step, observe)
                anchor = state = so_far.state
        done_fit = _fit(plan, state, seed, plan.steps, observe, so_far)
        chosen = done_fit.chosen
        test = evaluate(plan.trainer.eval_step, chosen.params, chosen.buffers, plan.trainer.data.test)
        return Round(number, variant, ticket(start), done_fit, test, anchor)

    first = done.number if done else 0
    anchor = done.anchor if done else None
    trained = done.trained if done else init(plan.model, seed, device)
    for number in range(first, plan.rounds + 1):
        finished: frozenset[str] = frozenset()
        if done and number == done.number:
            finished = done.controls
        else:
            start = _next_start(plan, seed, number, trained, anchor) if anchor is not None else trained
            result = trained_from(number, TICKET, start, anchor)
            anchor, trained = result.anchor, result.fit.state
            yield result
        assert anchor is not None
        if number:
            for control in plan.controls:
                if control not in finished:
                    yield trained_from(
                        number, control, control_start(plan, control, seed, number, trained, anchor), anchor
                    )


def _fit(
    plan: Plan, state: TrainState, seed: int, until: int, observe: Observer | None, so_far: Fit | None = None
) -> Fit:
    return fit(
        plan.trainer,
        state,
        seed=seed,
        until=until,
        eval_every=plan.eval_every,
        observe=observe,
        so_far=so_far,
    )


def _next_start(plan: Plan, seed: int, number: int, trained: TrainState, anchor: TrainState) -> TrainState:
    pruned = prune(fraction=plan.rate, score=plan.score(seed), allocate=plan.allocate)(trained)
    if not count(pruned.masks).kept:
        raise UserError(f"--rounds: no weight is left in round {number} at this --rate; fewer rounds would do")
    if plan.rewind.kind == "none":
        return finetune(pruned)
    if plan.rewind.kind == "reinit":
        return reinitialised(pruned, plan.model, key(seed, "rewind-reinit", number))
    return restart(pruned, anchor)


def control_start(
    plan: Plan, control: str, seed: int, number: int, trained: TrainState, anchor: TrainState
) -> TrainState:
    """What a control of a round starts from, given the round's ticket after training.

    reinit: the ticket's masks on new params. random-mask: the anchor under as many weights, drawn uniformly from
    the whole network. shuffled-mask: the anchor under the ticket's masks, shuffled within each layer.
    """
    if control == "reinit":
        return reinitialised(trained, plan.model, key(seed, "control-reinit", number))
    if control == "shuffled-mask":
        return restart(trained._replace(masks=shuffled(trained.masks, key(seed, "control-shuffle", number))), anchor)
    full = full_masks(trained.params, tuple(trained.masks))
    drawn = prune(density=density(trained.masks), score=random_scores(seed, "control-random-mask"))
    return restart(drawn(trained._replace(masks=full)), anchor)
