"""The local executors: trainings in this process, in turn, or several as one vmapped program."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET, Task
from lthfunc.scheduling.checkpointing import resume_step, train_with_checkpoints
from lthfunc.scheduling.gpu_memory import too_large
from lthfunc.scheduling.queue import Execution, Queue, Result, with_description
from lthfunc.training.results import Point, Stopped


def in_turn(run: Execution, queue: Queue) -> Generator[Result]:
    """One training after the other, all of a seed before the next seed's. Raises Stopped."""
    while queue.ready:
        yield from _train(run, queue, [queue.pop(lambda task: (task.seed, task.variant != TICKET))])


def vmapped(run: Execution, queue: Queue, width: int) -> Generator[Result]:
    """Up to `width` trainings that start at the same step as one program. Raises Stopped."""

    differ = bool(run.context.updates or run.context.through)

    def group_of(task: Task) -> tuple[int, int, bool, int]:
        return resume_step(run.folder, task), int(task.start.step), task.anchor is None, differ * task.number

    while queue.ready:
        first = min(group_of(task) for task in queue.ready)
        group = [queue.pop(group_of)]
        while len(group) < width and any(group_of(task) == first for task in queue.ready):
            group.append(queue.pop(group_of))
        yield from _train(run, queue, group)


def _train(run: Execution, queue: Queue, tasks: Sequence[Task]) -> list[Result]:
    if run.stopping():
        raise Stopped
    for task in tasks:
        run.watcher.begin(task, run.workload.end(run.context, task))

    def observe(number: int, points: Sequence[Point] | None) -> None:
        for place, task in enumerate(tasks):
            run.watcher.step(task, number, None if points is None else points[place])

    try:
        values, cost = train_with_checkpoints(run, tasks, observe)
    except torch.OutOfMemoryError as error:
        device = run.config.device
        if len(tasks) == 1:
            raise with_description(tasks[0], too_large(device)) from error
        raise UserError(
            f"--jobs: {len(tasks)} networks at once don't fit in the memory of {device}; "
            f"try --jobs {max(1, len(tasks) // 2)}"
        ) from error
    except UserError as error:
        raise with_description(tasks[0], error) if len(tasks) == 1 else error from None
    for task, value in zip(tasks, values, strict=True):
        queue.finished(task, value)
    return [Result(task, value, cost) for task, value in zip(tasks, values, strict=True)]
