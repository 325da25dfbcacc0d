"""The queue of trainings that are ready to run, what they need, and their watchers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.energy.meter import Meter
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.records import Record
from lthfunc.experiments.task_schedules import sent
from lthfunc.experiments.trainings import beginning, train_together
from lthfunc.runs.folder import training_folder
from lthfunc.training.results import Point
from lthfunc.training.trainer import Trainer
from lthfunc.trees.packed_states import AnyState

#: Whether to stop; called after every step.
Stopping = Callable[[], bool]


class Watcher:
    """Shows progress; this base class shows none. Several trainings may run at once."""

    def total(self, steps: int) -> None:
        """The number of training steps ahead."""

    def begin(self, task: Any, stop: int) -> None:
        """A training starts, and runs to step `stop`."""

    def step(self, task: Any, number: int, point: Point | None) -> None:
        """The training is at this step; point: of the curve, if it was evaluated there."""

    def end(self, task: Any, item: Record) -> None:
        """The training has ended and is on disk."""


class Beginning(NamedTuple):
    """What a training starts from: its state, and the trainer of all its steps."""

    start: AnyState
    trainer: Trainer


class Workload(NamedTuple):
    """A kind of training, as functions that a worker process can import.

    context: settings -> what all trainings share (a plan). begin: (context, task) -> what it starts from. train:
    (context, tasks, their beginnings, observe, checkpointer, so_far) -> a result for each; several tasks start at the
    same step and run as one vmapped program. end: (context, task) -> the step that it runs to.
    """

    context: Callable[[Config], Any]
    begin: Callable[[Any, Any], Beginning]
    train: Callable[..., list[Any]]
    end: Callable[[Any, Any], int]


def _plan(config: Config) -> Any:
    return prepare(config).plan


def _begin(plan: Any, task: Task) -> Beginning:
    return Beginning(*beginning(plan, task))


def _train(
    plan: Any, tasks: Sequence[Task], beginnings: Sequence[Beginning], observe: Any, checkpointer: Any, so_far: Any
) -> list[Any]:
    return train_together(plan, tasks, observe, checkpointer=checkpointer, so_far=so_far)


def _end(plan: Any, task: Task) -> int:
    end: int = plan.end_of(task)
    return end


#: Trainings of a plan.
PLANNED = Workload(_plan, _begin, _train, _end)


class Execution(NamedTuple):
    """How trainings are run.

    context: what they share. folder: of their checkpoints; None for no checkpoints. again: the command that resumes
    them.
    """

    config: Config
    context: Any
    folder: Path | None
    stopping: Stopping = lambda: False
    watcher: Watcher = Watcher()
    workload: Workload = PLANNED
    meter: Meter | None = None
    again: str = "lthfunc resume"

    def place(self, task: Any) -> Path | None:
        """The folder of a training's files, if there is one."""
        return None if self.folder is None else place_of(self.folder, task)


def place_of(folder: Path, task: Any) -> Path:
    """The folder of a training's files. folder: of its run or, of a task that names its run, of all runs."""
    return training_folder(folder / getattr(task, "run", ""), *task.key)


class TrainingCost(NamedTuple):
    """The cost of a training; trainings of one program share it equally. energy: as plain values, if metered."""

    seconds: float
    energy: dict[str, Any] | None = None


class Result(NamedTuple):
    """A finished training: the workload's result, and the cost."""

    task: Any
    value: Any
    cost: TrainingCost


def with_description(task: Any, error: UserError) -> UserError:
    """The error, with the training in which it happened named once."""
    return error if task.description in str(error) else type(error)(f"{task.description}: {error}")


class Queue:
    """Trainings that are ready to run.

    schedules: one per seed (per `series` of a task that has one), which continues when all its trainings have ended.
    """

    def __init__(self, schedules: Mapping[Any, Generator[list[Any], list[Any], None]]) -> None:
        self._schedules = schedules
        self._waiting: dict[Any, int] = {}
        self._results: dict[Any, list[Any]] = {}
        self.ready: list[Any] = []
        for series, schedule in schedules.items():
            self._add(series, next(schedule, None))

    def pop(self, by: Callable[[Any], Any]) -> Any:
        """Take out the ready training that comes first by a key."""
        task = min(self.ready, key=by)
        self.ready = [other for other in self.ready if other is not task]
        return task

    def finished(self, task: Any, value: Any) -> None:
        """Hand in a training's result."""
        series = getattr(task, "series", task.seed)
        self._results[series].append(value)
        if len(self._results[series]) == self._waiting[series]:
            self._add(series, sent(self._schedules[series], self._results[series]))

    def _add(self, series: Any, tasks: list[Any] | None) -> None:
        self._waiting[series], self._results[series] = len(tasks or []), []
        self.ready += tasks or []


def all_at_once(tasks: Sequence[Any]) -> Queue:
    """A queue of trainings that don't follow from each other."""

    def schedule(seed: int) -> Generator[list[Any], list[Any], None]:
        yield [task for task in tasks if task.seed == seed]

    return Queue({seed: schedule(seed) for seed in dict.fromkeys(task.seed for task in tasks)})
