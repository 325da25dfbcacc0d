"""Trainings of a plan: of one task, of several as one vmapped program, or of all of a seed in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lthfunc.arguments import public
from lthfunc.experiments.iterative import Announce, Done, Plan, Progress, Round, Task, rounds
from lthfunc.experiments.rewinding_and_controls import made_anchor
from lthfunc.experiments.task_schedules import in_turn
from lthfunc.sparsify.rewinding import learning_rate_rewound
from lthfunc.sparsify.transforms import ticket
from lthfunc.training.averaging import result_of
from lthfunc.training.loop import fit_together, untrained_fits
from lthfunc.training.packed_fits import AnyFit
from lthfunc.training.results import Checkpointer, Fit, Observer, Observers, as_observers
from lthfunc.training.trainer import Trainer, measure
from lthfunc.trees.packed_states import AnyState, dense_state
from lthfunc.trees.types import TrainState


def beginning(plan: Plan, task: Task) -> tuple[AnyState, Trainer]:
    """(the state that a task's training starts from, its trainer)."""
    through = plan.masks_through(task.number)
    if through is None:
        return task.start, plan.trainer
    return through.begin(dense_state(task.start), task.seed), through.trainer


def train_together(
    plan: Plan,
    tasks: Sequence[Task],
    observe: Observers | None = None,
    *,
    checkpointer: Checkpointer[Progress] | None = None,
    so_far: Sequence[Progress] | None = None,
) -> list[Round]:
    """Train tasks that start at the same step, several as one vmapped program; returns their results, in order.

    Several of them must be of one round, if trainings of different rounds differ (in `updates` or `through`).

    checkpointer: saves them while they train; so_far: what was saved of them, all at the same step.

    Raises Stopped if the checkpointer requests it.
    """
    number, seeds = tasks[0].number, [task.seed for task in tasks]
    starts, (trainer, *_) = zip(*(beginning(plan, task) for task in tasks), strict=True)
    through = plan.masks_through(number)
    before: list[AnyFit] | None = None if so_far is None else [each.fit for each in so_far]

    def fitted(until: int, anchors: Sequence[TrainState | None], before: list[AnyFit] | None) -> list[Fit]:
        def under_way(fits: Sequence[AnyFit]) -> list[Progress]:
            return [Progress(*each) for each in zip(fits, anchors, strict=True)]

        kept = None if checkpointer is None else checkpointer.of(under_way)
        states = starts if before is None else [fit.state for fit in before]
        return fit_together(
            trainer, states, seeds=seeds, until=until, eval_every=plan.eval_every, observe=observe, so_far=before,
            checkpointer=kept, updates=plan.updates_of(number),
        )  # fmt: skip

    nothing = [None] * len(tasks)
    end = plan.end_of(tasks[0])
    if plan.from_trained and not number:
        dense = [dense_state(each) for each in starts]
        fits = untrained_fits(plan.trainer, dense, checkpointer)
        anchors = [learning_rate_rewound(start, plan.anchor_step) for start in dense]
    elif tasks[0].anchor is None and plan.anchor_step:  # the dense training passes the anchor
        anchors = [each.anchor for each in so_far or () if each.anchor is not None]
        if not anchors:
            fits = fitted(plan.anchor_step, nothing, before)
            anchors, before = [fit.state._replace(opt=()) for fit in fits], [*fits]
        fits = fitted(end, anchors, before)
    else:
        fits = fitted(end, nothing, before)
        anchors = [_anchor_of(plan, task) for task in tasks]
    fits = [fit._replace(state=result_of(fit.state)) for fit in fits]
    if through is not None:
        fits = [through.finished(fit, dense_state(task.start)) for fit, task in zip(fits, tasks, strict=True)]
    tests = measure(plan.trainer, [fit.best for fit in fits], plan.trainer.data.test)
    return [
        Round(task.number, task.variant, ticket(dense_state(task.start)), fit, test, anchor)
        for task, fit, test, anchor in zip(tasks, fits, tests, anchors, strict=True)
    ]


def _anchor_of(plan: Plan, task: Task) -> TrainState:
    """What networks are rewound to, once a training that needn't look for it has ended."""
    if task.anchor is None:
        return dense_state(task.start)
    return made_anchor(task.anchor, plan.model, task.start.step.device)


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
