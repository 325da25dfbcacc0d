"""The trainings of an experiment: which are ready to run, and who is told how they go."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple, Protocol

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET, Round, Task, sent
from lthfunc.experiments.records import Record
from lthfunc.runs.folder import Name
from lthfunc.training.results import Point


class Watcher(Protocol):
    """Whoever shows progress. Several trainings may be under way at once."""

    def total(self, steps: int) -> None:
        """So many training steps lie ahead."""

    def begin(self, task: Task, stop: int) -> None:
        """A training begins, and goes on to step `stop`."""

    def step(self, task: Task, number: int, point: Point | None) -> None:
        """The training is at this step, or (with a point) the validation split was measured there."""

    def end(self, task: Task, item: Record) -> None:
        """The training ended and is on disk."""


class Spent(NamedTuple):
    """On a training; those that ran as one program share it evenly. energy: as plain values, where it was metered."""

    seconds: float
    energy: dict[str, Any] | None = None


class Result(NamedTuple):
    """A finished training, and what was spent on it."""

    task: Task
    round: Round
    spent: Spent


def name_of(task: Task) -> Name:
    """A training's name."""
    return task.seed, task.number, task.variant


def in_words(task: Task) -> str:
    """A training's name for messages."""
    return f"seed {task.seed}, round {task.number}" + ("" if task.variant == TICKET else f" ({task.variant})")


def named(task: Task, error: UserError) -> UserError:
    """The error with the training it happened in, told once."""
    words = in_words(task)
    return error if words in str(error) else type(error)(f"{words}: {error}")


class Queue:
    """Trainings of all seeds that are ready to run; a seed's next round becomes ready when all of its last ended."""

    def __init__(self, schedules: Mapping[int, Generator[list[Task], list[Round], None]]) -> None:
        self._schedules = schedules
        self._waiting: dict[int, list[Task]] = {}
        self._results: dict[int, list[Round]] = {}
        self.ready: list[Task] = []
        for seed, schedule in schedules.items():
            self._add(seed, next(schedule, None))

    def pop(self, by: Callable[[Task], Any]) -> Task:
        """Take out the ready training that comes first by a key."""
        task = min(self.ready, key=by)
        self.ready = [other for other in self.ready if other is not task]
        return task

    def finished(self, task: Task, result: Round) -> None:
        """Hand in a training's result."""
        seed = task.seed
        self._results[seed].append(result)
        if len(self._results[seed]) == len(self._waiting[seed]):
            self._add(seed, sent(self._schedules[seed], self._results[seed]))

    def _add(self, seed: int, tasks: list[Task] | None) -> None:
        self._waiting[seed], self._results[seed] = tasks or [], []
        self.ready += tasks or []
