"""The trainings of a connectivity study, for the queue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lthfunc.experiments.connectivity import Segment
from lthfunc.experiments.iterative import Plan, Progress
from lthfunc.scheduling.queue import PLANNED, Beginning, Workload
from lthfunc.training.packed_fits import dense_fit
from lthfunc.training.results import BestNetwork, Checkpointer, Fit, Observers, Point
from lthfunc.training.session import TrainingSession
from lthfunc.training.trainer import Trainer
from lthfunc.trees.types import TrainState


def _train(
    plan: Plan,
    tasks: Sequence[Segment],
    beginnings: Sequence[Beginning],
    observe: Any,
    checkpointer: Checkpointer[Progress],
    so_far: Sequence[Progress] | None,
) -> list[tuple[Segment, TrainState]]:
    (task,) = tasks
    fit = dense_fit(so_far[0].fit) if so_far else None
    state = task.start if fit is None else fit.state
    saver: Checkpointer[Fit] = checkpointer.of(lambda fits: [Progress(each) for each in fits])
    return [(task, train_to(plan.trainer, state, task.order, task.until, observe, saver, fit))]


def train_to(
    trainer: Trainer,
    state: TrainState,
    seed: int,
    until: int,
    observe: Observers | None,
    checkpointer: Checkpointer[Fit] | None,
    so_far: Fit | None,
) -> TrainState:
    """Train to a step, without evaluations on the validation split."""
    if so_far is None:
        point = Point(int(state.step), math.nan, math.nan, math.nan)
        so_far = Fit(state, BestNetwork(point, state.params, state.buffers), (point,))
    if checkpointer is not None:
        checkpointer.on_phase("preparation", int(state.step))
    since = [so_far.since]
    with TrainingSession(
        trainer, [state], [seed], until, since=since, observe=observe, checkpointer=checkpointer
    ) as session:
        session.to(until, [so_far])
        return session.now()[0][0]


def _end(plan: Plan, task: Segment) -> int:
    return task.until


SEGMENTS = Workload(PLANNED.context, PLANNED.begin, _train, _end)
