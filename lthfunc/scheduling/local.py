"""Trainings in this process: one after the other, or several as one vmapped program."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from lthfunc.energy.meter import Meter
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.scheduling.checkpointing import Stopping, position_of, train_kept
from lthfunc.scheduling.gpu_memory import too_large
from lthfunc.scheduling.queue import Queue, Result, Watcher, named
from lthfunc.training.results import Point, Stopped


class Way(NamedTuple):
    """How trainings of a run are carried out. folder: the run's; stopping: whether to stop; watcher: who is told.

    meter: of energy.
    """

    config: Config
    plan: Plan
    folder: Path
    watcher: Watcher
    stopping: Stopping
    meter: Meter | None = None


def in_turn(way: Way, queue: Queue) -> Generator[Result]:
    """One training after the other, a seed's all before the next one's. Raises Stopped."""
    while queue.ready:
        yield from _train(way, queue, [queue.pop(lambda task: (task.seed, task.variant != TICKET))])


def side_by_side(way: Way, queue: Queue, width: int) -> Generator[Result]:
    """Up to `width` trainings that begin at the same step as one program. Raises Stopped."""

    def beginning(task: Task) -> tuple[int, int, bool]:
        return position_of(way.folder, task), int(task.start.step), task.anchor is None

    while queue.ready:
        first = min(beginning(task) for task in queue.ready)
        group = [queue.pop(beginning)]
        while len(group) < width and any(beginning(task) == first for task in queue.ready):
            group.append(queue.pop(beginning))
        yield from _train(way, queue, group)


def _train(way: Way, queue: Queue, tasks: Sequence[Task]) -> list[Result]:
    if way.stopping():
        raise Stopped
    for task in tasks:
        way.watcher.begin(task, way.plan.end_of(task.start))

    def observe(number: int, points: Sequence[Point] | None) -> None:
        for place, task in enumerate(tasks):
            way.watcher.step(task, number, None if points is None else points[place])

    try:
        rounds, spent = train_kept(way.plan, tasks, way.folder, way.config, way.stopping, observe, way.meter)
    except torch.OutOfMemoryError as error:
        if len(tasks) == 1:
            raise named(tasks[0], too_large(str(tasks[0].start.step.device))) from error
        raise UserError(
            f"--jobs: {len(tasks)} networks side by side don't fit the memory of {tasks[0].start.step.device}; "
            f"try --jobs {max(1, len(tasks) // 2)}"
        ) from error
    except UserError as error:
        raise named(tasks[0], error) if len(tasks) == 1 else error from None
    for task, result in zip(tasks, rounds, strict=True):
        queue.finished(task, result)
    return [Result(task, result, spent) for task, result in zip(tasks, rounds, strict=True)]
