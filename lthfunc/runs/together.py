"""Trainings in this process: one after the other, or several as one vmapped program."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence

import torch

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET, Plan, Task, train_together
from lthfunc.runs.trainings import Queue, Result, Watcher, named
from lthfunc.training.loop import Point


def in_turn(plan: Plan, queue: Queue, watcher: Watcher) -> Generator[Result]:
    """One training after the other, a seed's all before the next one's."""
    while queue.ready:
        yield from _train(plan, queue, watcher, [queue.pop(lambda task: (task.seed, task.variant != TICKET))])


def side_by_side(plan: Plan, queue: Queue, width: int, watcher: Watcher) -> Generator[Result]:
    """Up to `width` trainings that begin at the same step as one program."""
    while queue.ready:
        first = min(_beginning(task) for task in queue.ready)
        group = [queue.pop(_beginning)]
        while len(group) < width and any(_beginning(task) == first for task in queue.ready):
            group.append(queue.pop(_beginning))
        yield from _train(plan, queue, watcher, group)


def _beginning(task: Task) -> tuple[int, bool]:
    return int(task.start.step), task.anchor is None


def _train(plan: Plan, queue: Queue, watcher: Watcher, tasks: Sequence[Task]) -> list[Result]:
    clock = time.perf_counter()
    for task in tasks:
        watcher.begin(task, plan.end_of(task.start))

    def observe(number: int, point: Point | None) -> None:
        for task in tasks:
            watcher.step(task, number, point)

    try:
        rounds = train_together(plan, tasks, observe)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"--jobs: {len(tasks)} networks side by side don't fit the memory of {tasks[0].start.step.device}; "
            f"try --jobs {max(1, len(tasks) // 2)}"
        ) from error
    except UserError as error:
        raise named(tasks[0], error) if len(tasks) == 1 else error from None
    seconds = (time.perf_counter() - clock) / len(tasks)
    for task, result in zip(tasks, rounds, strict=True):
        queue.finished(task, result)
    return [Result(task, result, seconds) for task, result in zip(tasks, rounds, strict=True)]
