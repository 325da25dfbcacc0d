"""Trackers: their interface, how a run's events reach them, and which of them its settings ask for."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from lthfunc.catalog.deployment import TRACKERS
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.records import Record, search_energy
from lthfunc.runs import safe_files
from lthfunc.runs.folder import training_folder
from lthfunc.scheduling.queue import Watcher
from lthfunc.training.results import Point


class Sink(Protocol):
    """A tracker. Names are those of trainings (`seed0/round03`) or, for results by round, of a seed's variant."""

    def write(self, name: str, step: int, values: Mapping[str, float]) -> None:
        """Log values of a training at a step, or of a seed's variant at a round."""

    def close(self) -> None:
        """Finish."""


class Tracker(Watcher):
    """A watcher that logs learning curves as they come, and each round's results at its end."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def step(self, task: Task, number: int, point: Point | None) -> None:
        """Log a point of the learning curve."""
        if point is None:
            return
        values = {"val_loss": point.val_loss, "val_accuracy": point.val_accuracy}
        if not math.isnan(point.train_loss):
            values["train_loss"] = point.train_loss
        # Named like the training's folder: seed0/round03, seed0/round03-reinit.
        self._sink.write(training_folder(Path(), *task.key).as_posix(), point.step, values)

    def end(self, task: Task, item: Record) -> None:
        """Log the training's results."""
        seed, number, variant = task.key
        names = ("density", "test_accuracy", "test_loss", "val_accuracy", "val_loss", "early_stop_step", "seconds")
        values = {name: float(item[name]) for name in names}
        if "energy" in item:
            values["energy_kwh"] = search_energy(item)
        self._sink.write(f"rounds/seed{seed}-{variant}", number, values)


def check_trackers(config: Config) -> None:
    """Raise UserError where a tracker's package is missing."""
    for name in TRACKERS:
        if getattr(config, name) and importlib.util.find_spec(name) is None:
            raise UserError(f"--{name}: needs the package {name} (pip install 'lthfunc[{name}]')")


@contextmanager
def tracking(config: Config, folder: Path) -> Iterator[list[Tracker]]:
    """Those that the settings ask for, as long as this lasts. Raises UserError where one cannot be had."""
    with ExitStack() as stack:
        found = []
        for name, entry in TRACKERS.items():
            if getattr(config, name):
                safe_files.check_tree(folder, folder / entry.place)
                sink: Sink = TRACKERS.load(name)(folder, to_mapping(config))
                stack.callback(sink.close)
                found.append(Tracker(sink))
        yield found
