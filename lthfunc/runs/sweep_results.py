"""A sweep's folder: a line that describes it, a line per finished trial, and a run for each.

sweep.jsonl     {"kind": "sweep", "config": {…}, "space": {…}, …}, then {"kind": "trial", "number", "values", …}
trial000/       a run like any other
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.errors import invalid
from lthfunc.experiments.config import FREE, Config, current_names, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.metrics import MetricScale, metric_scale
from lthfunc.experiments.records import Spread, summarize
from lthfunc.experiments.sweeps import Range, Space, Values
from lthfunc.runs import safe_files
from lthfunc.runs.folder import Run
from lthfunc.runs.json_lines import append_lines, open_log

SWEEP = "sweep.jsonl"


class Trial(NamedTuple):
    """A finished trial. worth: its validation accuracy, by which trials are compared; test_accuracy: only reported.

    Both are None if it failed, for a reason. metric: reported as accuracy.
    """

    number: int
    values: Values
    worth: Spread | None
    test_accuracy: Spread | None = None
    density: float | None = None
    seconds: float | None = None
    reason: str | None = None
    metric: str = "accuracy"

    @property
    def scale(self) -> MetricScale:
        """How the metric is compared and written."""
        known = (each.mean for each in (self.worth, self.test_accuracy) if each is not None)
        return metric_scale(self.metric, known)

    @property
    def gain(self) -> float:
        """By how much it is better than 0, for comparing trials; minus infinity if it failed."""
        return -math.inf if self.worth is None else self.scale.gain(self.worth.mean, 0)


def open_sweep(folder: Path, config: Config, space: Space, objective: str, kind: str) -> list[Trial]:
    """Start a sweep, or read the trials of the same one. Raises UserError if the folder has other content."""
    about = {
        "kind": "sweep",
        "by": kind,
        "objective": objective,
        "space": {name: values._asdict() if isinstance(values, Range) else values for name, values in space.items()},
        "config": {name: value for name, value in to_mapping(config).items() if name not in FREE},
    }
    path = folder / SWEEP
    if safe_files.status(folder, path) is None:
        if folder.exists() and (not folder.is_dir() or safe_files.names(folder, folder)):
            raise invalid("--out", str(folder), "a new or empty folder, or the folder of the same sweep")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise invalid("--out", str(folder), f"a folder that can be made ({error.strerror})") from error
    return [_trial(line) for line in open_log(path, folder, about, FREE)]


def add_trial(folder: Path, trial: Trial) -> None:
    """Write a finished trial."""
    append_lines(folder / SWEEP, [{"kind": "trial", **as_values(trial)}])


def as_values(trial: Trial) -> dict[str, Any]:
    """The trial as plain values, for files and JSON."""
    return {name: value._asdict() if isinstance(value, Spread) else value for name, value in trial._asdict().items()}


def trial_folder(folder: Path, number: int) -> Path:
    """The folder of a trial's run. Raises DamagedError if it is reached through a link."""
    run = folder / f"trial{number:03d}"
    safe_files.check_folder(folder, run)
    return run


def trial_of(number: int, values: Values, run: Run, objective: str) -> Trial:
    """The trial of a finished run, judged by validation accuracy, never by test accuracy."""
    tickets = [row for row in summarize(run.records) if row.variant == TICKET]
    row = tickets[0] if objective == "dense" else tickets[-1]
    if objective == "winning" and (winner := run.choice.winner) is not None:
        row = winner.row
    seconds = sum(item["seconds"] for item in run.records)
    return Trial(number, values, row.val_accuracy, row.test_accuracy, row.density, seconds, None, row.metric)


def _trial(line: dict[str, Any]) -> Trial:
    values: dict[str, Any] = {name: line.get(name) for name in Trial._fields}
    values["metric"] = line.get("metric") or "accuracy"
    values["values"] = current_names(values["values"])
    for name in ("worth", "test_accuracy"):
        part = values[name]
        values[name] = None if part is None else Spread(**part)
    return Trial(**values)
