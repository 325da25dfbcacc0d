"""Progress: live on a terminal, a line per finished training elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lthfunc.experiments.iterative import TICKET, Plan
from lthfunc.experiments.records import Record
from lthfunc.runs.execute import Training, Watcher
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.loop import Point

#: Seconds between two redraws; counting every step would cost more than a small step takes.
_REDRAW = 0.1


@contextmanager
def watching(console: Console, plan: Plan) -> Iterator[Watcher]:
    """The watcher that suits where stderr goes."""
    if not console.is_terminal:
        yield Lines()
        return
    live = Live(console, plan)
    with live.progress:
        yield live


def line(item: Record) -> str:
    """A finished training in one line."""
    who = "" if item["variant"] == TICKET else f" {item['variant']}"
    return (
        f"seed {item['seed']} round {item['round']}{who}: density {100 * item['density']:.2f} %, "
        f"val {100 * item['val_accuracy']:.2f} %, test {100 * item['test_accuracy']:.2f} %, "
        f"stop {item['early_stop_step']:,}, {item['seconds']:.1f} s"
    )


class Lines:
    """Plain lines on stderr."""

    def total(self, steps: int) -> None:
        """Nothing to say."""

    def begin(self, training: Training) -> None:
        """Nothing to say."""

    def step(self, number: int, point: Point | None) -> None:
        """Nothing to say."""

    def end(self, item: Record) -> None:
        """Say how the training went."""
        print(line(item), file=sys.stderr, flush=True)


class Live:
    """A bar over all steps of the experiment, and the present training's figures."""

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
        self._task = self.progress.add_task("starting")
        self._before = 0  # steps of the trainings that ended
        self._training: Training | None = None
        self._point: Point | None = None
        self._drawn = 0.0

    def total(self, steps: int) -> None:
        """So many training steps lie ahead."""
        self.progress.update(self._task, total=steps)

    def begin(self, training: Training) -> None:
        """A training begins."""
        self._training, self._point = training, None
        self._show(training.start)

    def step(self, number: int, point: Point | None) -> None:
        """A step was taken, or the validation split was measured."""
        if point is not None:
            self._point = point
        now = time.monotonic()
        if point is not None or now - self._drawn > _REDRAW:
            self._drawn = now
            self._show(number)

    def end(self, item: Record) -> None:
        """The training ended: leave its line above the bar."""
        if self._training is not None:
            self._before += self._training.stop - self._training.start
        self.progress.console.print(line(item), highlight=False, soft_wrap=True)

    def _show(self, number: int) -> None:
        training = self._training
        if training is None:
            return
        figures = ""
        if self._point is not None:
            figures = f" loss {self._point.train_loss:.3f} acc {100 * self._point.val_accuracy:.1f} %"
        who = "" if training.variant == TICKET else f" {training.variant}"
        seed = f"seed {training.seed} " if training.replicate else ""
        epochs = -(-training.stop // self._per_epoch)
        self.progress.update(
            self._task,
            completed=self._before + number - training.start,
            description=(
                f"{seed}round {training.number}/{self._plan.rounds}{who} density {100 * training.density:.1f} % "
                f"epoch {min(epochs, number // self._per_epoch + 1)}/{epochs}{figures}"
            ),
        )
