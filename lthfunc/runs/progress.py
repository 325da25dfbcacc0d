"""How far a run is, for whoever looks at its folder from another process.

``.progress.json``: ``{"time": …, "done": steps, "total": steps, "trainings": [{"seed", "round", "variant", "density",
"start", "at", "stop", "point"}, …]}``; it is there while somebody works on the run, and never on the way of a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lthfunc.experiments.iterative import Task
from lthfunc.experiments.records import Record
from lthfunc.runs.folder import Name
from lthfunc.runs.trainings import Watcher, name_of
from lthfunc.training.fits import Point
from lthfunc.trees.ops import density

PROGRESS = ".progress.json"
#: Seconds between two words.
_EVERY = 1.0


class Several:
    """Tells everything to several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        self._watchers = watchers

    def total(self, steps: int) -> None:
        """So many training steps lie ahead."""
        for each in self._watchers:
            each.total(steps)

    def begin(self, task: Task, stop: int) -> None:
        """A training begins."""
        for each in self._watchers:
            each.begin(task, stop)

    def step(self, task: Task, number: int, point: Point | None) -> None:
        """A step was taken, or the validation split was measured."""
        for each in self._watchers:
            each.step(task, number, point)

    def end(self, task: Task, item: Record) -> None:
        """The training ended and is on disk."""
        for each in self._watchers:
            each.end(task, item)


class Broadcast:
    """Writes how far the trainings are, about once a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._total = self._before = 0
        self._under: dict[Name, dict[str, Any]] = {}
        self._told = float("-inf")

    def total(self, steps: int) -> None:
        """So many training steps lie ahead."""
        self._total = steps
        self._tell()

    def begin(self, task: Task, stop: int) -> None:
        """A training begins."""
        start = int(task.start.step)
        self._under[name_of(task)] = {
            "seed": task.seed, "round": task.number, "variant": task.variant, "density": density(task.start.masks),
            "start": start, "at": start, "stop": stop, "point": None,
        }  # fmt: skip
        self._tell()

    def step(self, task: Task, number: int, point: Point | None) -> None:
        """A step was taken, or the validation split was measured."""
        under = self._under[name_of(task)]
        under["at"] = number
        if point is not None:
            under["point"] = {"step": point.step, "loss": point.val_loss, "accuracy": point.val_accuracy}
        if time.monotonic() - self._told > _EVERY:
            self._tell()

    def end(self, task: Task, item: Record) -> None:
        """The training ended."""
        under = self._under.pop(name_of(task))
        self._before += under["stop"] - under["start"]
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        under = list(self._under.values())
        done = self._before + sum(each["at"] - each["start"] for each in under)
        about = {"time": time.time(), "done": done, "total": self._total, "trainings": under}
        beside = self._path.with_name(f"{PROGRESS}.new")
        with suppress(OSError):  # nothing that a training should end for
            beside.write_text(json.dumps(about), encoding="utf-8")
            beside.replace(self._path)


@contextmanager
def broadcasting(folder: Path, watchers: Sequence[Watcher]) -> Iterator[Watcher]:
    """The watchers as one, and the folder told as well for as long as this lasts."""
    path = folder / PROGRESS
    try:
        yield Several([*watchers, Broadcast(path)])
    finally:
        with suppress(OSError):
            path.unlink()


def progress(folder: Path) -> dict[str, Any] | None:
    """What was last said; None where nobody works on the run, or its file is half there."""
    try:
        about = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) else None
