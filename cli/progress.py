"""Progress: live on a terminal, otherwise a line per finished training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.experiments.records import Record
from lthfunc.runs.folder import Name
from lthfunc.scheduling.queue import Watcher
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.results import Point
from lthfunc.trees.ops import density

from .bars import bar_of
from .console import say

#: Seconds between two redraws; counting every step would cost more than a small step takes.
_REDRAW = 0.1
#: Most trainings that are named beside the bar.
_SHOWN = 2


@contextmanager
def watching(console: Console, plan: Plan) -> Iterator[Watcher]:
    """The watcher for stderr: a live bar on a terminal, otherwise lines."""
    if not console.is_terminal:
        yield Lines()
        return
    live = Live(console, plan)
    with live.progress:
        yield live


@contextmanager
def watching_tasks(count: int, line: Callable[[Any, Record], str]) -> Iterator[Watcher]:
    """The watcher of `count` trainings outside a run. line: the line for a finished one."""
    progress = bar_of(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress:
        yield _Tasks(progress, count, line)


def who(seed: int, number: int | str, variant: str) -> str:
    """A short name for a training."""
    return f"seed {seed} round {number}" + ("" if variant == TICKET else f" {variant}")


def line(item: Record) -> str:
    """A finished training in one line."""
    return (
        f"{who(item['seed'], item['round'], item['variant'])}: density {100 * item['density']:.2f} %, "
        f"val {100 * item['val_accuracy']:.2f} %, test {100 * item['test_accuracy']:.2f} %, "
        f"stop {item['early_stop_step']:,}, {item['seconds']:.1f} s"
    )


class Lines(Watcher):
    """A line on stderr for each finished training."""

    def end(self, task: Task, item: Record) -> None:
        say(line(item))


@dataclass
class _Under:
    """An unfinished training."""

    task: Task
    start: int
    stop: int
    at: int
    point: Point | None = None


class Live(Watcher):
    """A bar over all steps of the experiment, and the current figures of the trainings."""

    def __init__(self, console: Console, plan: Plan) -> None:
        self._plan = plan
        self._per_epoch = steps_per_epoch(len(plan.trainer.data.train.x), plan.trainer.batch_size)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self._bar = self.progress.add_task("starting")
        self._before = 0  # steps of finished trainings
        self._under: dict[Name, _Under] = {}
        self._drawn = 0.0

    def total(self, steps: int) -> None:
        self.progress.update(self._bar, total=steps)

    def begin(self, task: Task, stop: int) -> None:
        start = int(task.start.step)
        self._under[task.key] = _Under(task, start, stop, start)
        self._show()

    def step(self, task: Task, number: int, point: Point | None) -> None:
        under = self._under[task.key]
        under.at = number
        if point is not None:
            under.point = point
        now = time.monotonic()
        if now - self._drawn > _REDRAW:
            self._drawn = now
            self._show()

    def end(self, task: Task, item: Record) -> None:
        under = self._under.pop(task.key)
        self._before += under.stop - under.start
        self.progress.console.print(line(item), highlight=False, soft_wrap=True)

    def _show(self) -> None:
        done = self._before + sum(under.at - under.start for under in self._under.values())
        trainings = list(self._under.values())
        parts = [who(under.task.seed, under.task.number, under.task.variant) for under in trainings]
        text = self._in_full(trainings[0]) if len(trainings) == 1 else _first_of(parts)
        self.progress.update(self._bar, completed=done, description=text)

    def _in_full(self, under: _Under) -> str:
        task, point = under.task, under.point
        figures = f" loss {point.train_loss:.3f} acc {100 * point.val_accuracy:.1f} %" if point else ""
        epochs = -(-under.stop // self._per_epoch)
        return (
            f"{who(task.seed, f'{task.number}/{self._plan.rounds}', task.variant)} "
            f"density {100 * density(task.start.masks):.1f} % "
            f"epoch {min(epochs, under.at // self._per_epoch + 1)}/{epochs}{figures}"
        )


def _first_of(parts: list[str]) -> str:
    """As many trainings as fit on a line."""
    rest = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return " · ".join(parts[:_SHOWN]) + rest


class _Tasks(Watcher):
    """A line per finished training, and a bar over all of them that includes the steps of unfinished ones."""

    def __init__(self, progress: Progress, count: int, line: Callable[[Any, Record], str]) -> None:
        self._progress, self._line = progress, line
        self._bar = progress.add_task("", total=count)
        self._steps: dict[str, int] = {}
        self._drawn = 0.0

    def begin(self, task: Any, stop: int) -> None:
        self._steps[task.description] = 0

    def step(self, task: Any, number: int, point: Point | None) -> None:
        self._steps[task.description] = number
        if time.monotonic() - self._drawn > _REDRAW:
            self._drawn = time.monotonic()
            parts = [f"{name} step {steps:,}" for name, steps in self._steps.items()]
            self._progress.update(self._bar, description=_first_of(parts))

    def end(self, task: Any, item: Record) -> None:
        del self._steps[task.description]
        self._progress.advance(self._bar)
        self._progress.console.print(self._line(task, item), highlight=False, soft_wrap=True)
