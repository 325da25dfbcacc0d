"""The trainings of a connectivity study, for the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lthfunc.experiments.connectivity import Segment
from lthfunc.experiments.courses.course import train_to
from lthfunc.experiments.iterative import Plan, Progress
from lthfunc.scheduling.queue import PLANNED, Beginning, Workload
from lthfunc.training.results import Checkpointer, Fit
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
    fit = so_far[0].fit if so_far else None
    state = task.start if fit is None else fit.state
    saver: Checkpointer[Fit] = checkpointer.of(lambda fits: [Progress(each) for each in fits])
    return [(task, train_to(plan.trainer, state, task.order, task.until, observe, saver, fit))]


def _end(plan: Plan, task: Segment) -> int:
    return task.until


SEGMENTS = Workload(PLANNED.context, PLANNED.begin, _train, _end)
