"""The display of trainings: live on a terminal (`prune`, and `watch` in another one), otherwise few plain lines."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lthfunc.experiments.iterative import TICKET, Task
from lthfunc.experiments.metrics import MetricScale, metric_scale
from lthfunc.experiments.records import Record, Row, scale_of_records, summarize
from lthfunc.printable import counted
from lthfunc.reports.tables import result_table
from lthfunc.scheduling.progress import Tracker
from lthfunc.scheduling.queue import Stopping, Watcher
from lthfunc.training.results import Point

from .bars import bar_of
from .console import duration, indicating, printable, say
from .stopping import STOPPING

#: Seconds between two redraws of a bar; counting every step would cost more than a small step takes.
_REDRAW = 0.1
#: Redraws of the live display per second.
_REFRESHES = 4
#: Most trainings that are named beside a bar.
_SHOWN = 2
#: Columns of a bar, and of all else in its line but the name: without and with the training's loss and density.
_BAR, _BESIDE, _BESIDE_WIDE = (8, 40), 44, 74


@contextmanager
def watching(
    console: Console, title: str, trainings: int, tracker: Tracker, records: Sequence[Record], stopping: Stopping
) -> Iterator[Watcher]:
    """The watcher of a run for stderr: a live display on a terminal, otherwise lines.

    title: what is trained on what. trainings: all of the run; records: those that have finished before. stopping:
    whether the run will stop.
    """
    if not console.is_terminal:
        yield Lines(trainings, tracker, records)
        return
    display = _Display(console, title, trainings, tracker, records, stopping)
    try:
        with (
            Live(console=console, get_renderable=display.now, refresh_per_second=_REFRESHES, transient=True),
            indicating(display.note),
        ):
            yield display
    except BaseException:  # the results at the end of the run, which would have taken its place, won't be printed
        if display.rows:
            console.print(result_table(display.rows, console.width))
        raise


@contextmanager
def watching_tasks(count: int, line: Callable[[Any, Record], str]) -> Iterator[Watcher]:
    """The watcher of `count` trainings outside a run. line: the line for a finished one."""
    progress = bar_of(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with progress:
        yield _Tasks(progress, count, line)


def who(seed: int, number: int, variant: str) -> str:
    """A short name for a training."""
    return f"seed {seed} round {number}" + ("" if variant == TICKET else f" {variant}")


def progress_view(
    title: str, finished: int, trainings: int, about: dict[str, Any] | None, rows: Sequence[Row], size: tuple[int, int]
) -> Group:
    """A run as it is now: the time left, a bar per training, and the results so far, as many as there is room for.

    finished: how many of the trainings are. about: of those under way, as in ``.progress.json``. size: columns and
    lines of the screen.
    """
    width, height = size
    parts: list[Any] = [printable(f"{title}: {finished} of {counted(trainings, 'training')} finished")]
    if about is not None:
        steps = f"{about['done']:,} of {about['total']:,} steps"
        left = "" if about.get("left") is None else f", about {duration(about['left'])} left"
        shown_now = [each["point"]["accuracy"] for each in about["trainings"] if each["point"] is not None]
        scale = metric_scale(about.get("metric", "accuracy"), shown_now)
        parts += [steps + left, _bars(about["trainings"], scale, width)]
    if rows:
        room = height - len(parts) - len((about or {}).get("trainings", ())) - 4
        shown = rows[-max(1, room) :]
        if len(shown) < len(rows):
            parts.append(f"… {len(rows) - len(shown)} rows above")
        parts += ["", result_table(shown, width)]
    return Group(*parts)


def _bars(trainings: Sequence[dict[str, Any]], scale: MetricScale, width: int) -> Table:
    """A line per training: its name, a bar that moves until it can be counted, steps per second, the metric."""
    table = Table.grid(padding=(0, 2))
    names = [who(each["seed"], each["round"], each["variant"]) for each in trainings]
    room = width - max(map(len, names), default=0)
    wide = room >= _BESIDE_WIDE + _BAR[0]
    bar = min(max(room - (_BESIDE_WIDE if wide else _BESIDE), _BAR[0]), _BAR[1])
    for column in range(7 if wide else 5):
        table.add_column(no_wrap=True, justify="left" if column < 2 else "right")
    for name, each in zip(names, trainings, strict=True):
        done, of = each["at"] - each["start"], each["stop"] - each["start"]
        point, rate, counts = each["point"], each.get("rate"), done > 0
        cells = [
            "" if rate is None else f"{rate:,.0f} steps/s",
            "" if point is None else f"val {scale.text(point['accuracy'])}",
        ]
        if wide:
            loss = "" if point is None else f"loss {point['loss']:.3f}"
            cells += [loss, f"density {100 * each['density']:.1f} %"]
        share = f"{100 * done / max(1, of):.0f} %" if counts else "starting"
        table.add_row(name, ProgressBar(of if counts else None, done, width=bar, pulse=not counts), share, *cells)
    return table


class Lines(Watcher):
    """A line on stderr for each seed's finished round."""

    def __init__(self, trainings: int, tracker: Tracker, records: Sequence[Record]) -> None:
        self._trainings, self._tracker, self._records = trainings, tracker, list(records)

    def end(self, task: Task, item: Record) -> None:
        self._records.append(item)
        if self._tracker.is_under_way(task.seed, task.number):
            return
        mine = [each for each in self._records if (each["seed"], each["round"]) == (task.seed, task.number)]
        done, left = len(self._records), self._tracker.seconds_left()
        ahead = f", about {duration(left)} left" if left and done < self._trainings else ""
        accuracies = "; ".join(map(_accuracies, sorted(mine, key=lambda each: each["variant"] != TICKET)))
        say(f"{who(task.seed, task.number, TICKET)}: density {100 * item['density']:.2f} %, {accuracies} "
            f"({done} of {counted(self._trainings, 'training')}{ahead})")  # fmt: skip


def _accuracies(item: Record) -> str:
    name = "" if item["variant"] == TICKET else f"{item['variant']} "
    scale = scale_of_records([item])
    val, test = (scale.text(item[split]) for split in ("val_accuracy", "test_accuracy"))
    return f"{name}val {val}, test {test}"


class _Display(Watcher):
    """The live display. It is drawn by its own thread, so that steps have no part in it."""

    def __init__(
        self, console: Console, title: str, trainings: int, tracker: Tracker, records: Sequence[Record],
        stopping: Stopping,
    ) -> None:  # fmt: skip
        self._console, self._title, self._trainings, self._tracker = console, title, trainings, tracker
        self._stopping, self._note = stopping, ""
        self._records = list(records)
        self.rows = summarize(self._records)

    def note(self, text: str) -> None:
        """What else is going on, e.g. a build; empty: nothing."""
        self._note = text

    def end(self, task: Task, item: Record) -> None:
        self._records.append(item)
        self.rows = summarize(self._records)

    def now(self) -> Group:
        """What is drawn."""
        finished, about, (width, height) = len(self._records), self._tracker.snapshot(), self._console.size
        view = progress_view(self._title, finished, self._trainings, about, self.rows, (width, height - 1))
        note = STOPPING if self._stopping() else self._note
        return Group(view, Text(note)) if note else view


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


def _first_of(parts: list[str]) -> str:
    """As many trainings as fit on a line."""
    rest = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return " · ".join(parts[:_SHOWN]) + rest
