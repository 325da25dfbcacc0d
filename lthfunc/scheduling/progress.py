"""The progress of a run, for other processes that read its folder.

``.progress.json``: ``{"time": …, "done": steps, "total": steps, "trainings": [{"seed", "round", "variant", "density",
"start", "at", "stop", "point"}, …]}``; it exists while a process works on the run, and is never written within a step.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lthfunc.errors import DamagedError
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.records import Record
from lthfunc.runs import safe_files
from lthfunc.runs.folder import PROGRESS, Name
from lthfunc.runs.side_file_schemas import Progress, content_of
from lthfunc.scheduling.queue import Watcher
from lthfunc.training.results import Point
from lthfunc.trees.ops import density

if TYPE_CHECKING:
    from lthfunc.runs.mirror import Mirror

#: Seconds between two reports, and between two uploads.
_EVERY, _UPLOAD_EVERY = 1.0, 20.0
#: Most bytes of such a file.
_MOST = 10_000_000


class _All(Watcher):
    """Passes everything on to several watchers."""

    def __init__(self, watchers: Sequence[Watcher]) -> None:
        for name in ("total", "begin", "step", "end"):
            setattr(self, name, partial(_tell, [getattr(each, name) for each in watchers]))


def _tell(listeners: Sequence[Callable[..., None]], *event: Any) -> None:
    for each in listeners:
        each(*event)


class Uploads(Watcher):
    """Uploads a run to its address after every training, and at intervals for its checkpoints."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror, self._last = mirror, time.monotonic()
        self._thread: threading.Thread | None = None

    def total(self, steps: int) -> None:
        self._upload()

    def step(self, task: Task, number: int, point: Point | None) -> None:
        if time.monotonic() - self._last > _UPLOAD_EVERY:
            self._upload()

    def end(self, task: Task, item: Record) -> None:
        self._upload()

    def _upload(self) -> None:
        """Upload during training, unless the last upload is still running; failures are retried later."""
        self._last = time.monotonic()
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._quietly, name="lthfunc-mirror", daemon=True)
            self._thread.start()

    def _quietly(self) -> None:
        with suppress(Exception):
            self._mirror.send()


class _Broadcast(Watcher):
    """Writes the progress of the trainings, about once per second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._total = self._before = 0
        self._under: dict[Name, dict[str, Any]] = {}
        self._written = float("-inf")

    def total(self, steps: int) -> None:
        self._total = steps
        self._write()

    def begin(self, task: Task, stop: int) -> None:
        start = int(task.start.step)
        self._under[task.key] = {
            "seed": task.seed, "round": task.number, "variant": task.variant, "density": density(task.start.masks),
            "start": start, "at": start, "stop": stop, "point": None,
        }  # fmt: skip
        self._write()

    def step(self, task: Task, number: int, point: Point | None) -> None:
        under = self._under[task.key]
        under["at"] = number
        if point is not None:
            under["point"] = {"step": point.step, "loss": point.val_loss, "accuracy": point.val_accuracy}
        if time.monotonic() - self._written > _EVERY:
            self._write()

    def end(self, task: Task, item: Record) -> None:
        under = self._under.pop(task.key)
        self._before += under["stop"] - under["start"]
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        under = list(self._under.values())
        done = self._before + sum(each["at"] - each["start"] for each in under)
        about = {"time": time.time(), "done": done, "total": self._total, "trainings": under}
        with suppress(OSError):  # no reason to end a training
            safe_files.write(self._path.parent, self._path, json.dumps(about).encode(), durable=False)


@contextmanager
def broadcasting(folder: Path, watchers: Sequence[Watcher]) -> Iterator[Watcher]:
    """The watchers as one, which also writes to the folder during this context."""
    path = folder / PROGRESS
    try:
        yield _All([*watchers, _Broadcast(path)])
    finally:
        with suppress(OSError):
            safe_files.remove(folder, path)


def progress(folder: Path) -> dict[str, Any] | None:
    """The latest progress; None if no process works on the run, or its file is incomplete."""
    try:
        return content_of(Progress, safe_files.read(folder, folder / PROGRESS, _MOST))
    except (OSError, DamagedError):
        return None
