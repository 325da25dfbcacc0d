"""Schedules: generators that yield lists of tasks, whose results they are sent, until nothing is left to run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_turn(schedule: Generator[list[T], list[R], None], run: Callable[[T], R]) -> Iterator[R]:
    """The results of a schedule's tasks, run one after the other."""
    tasks = next(schedule, None)
    while tasks is not None:
        results = []
        for task in tasks:
            results.append(run(task))
            yield results[-1]
        tasks = sent(schedule, results)


def sent(schedule: Generator[list[T], list[R], None], results: list[R]) -> list[T] | None:
    """Send results to a schedule; returns its next tasks, or None at the end."""
    with suppress(StopIteration):
        return schedule.send(results)
    return None
