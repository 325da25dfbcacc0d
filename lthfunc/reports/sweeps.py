"""Trials of a sweep: a table, and pictures of accuracy against settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from rich.table import Table

from lthfunc.experiments.metrics import MetricScale, in_one_unit
from lthfunc.reports.charts import Chart, Heat, Picture, Series
from lthfunc.reports.tables import ACCURACY, in_short, measured, plain_table
from lthfunc.runs.sweep_results import Trial


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the best validation accuracy, the first of equals; None where all failed."""
    good = [trial for trial in trials if trial.worth is not None]
    return max(good, key=lambda trial: (trial.gain, -trial.number), default=None)


def trial_table(trials: Sequence[Trial], replicates: int) -> Table:
    """All trials, the best first, failed ones last."""
    head, scales = in_short(_scale(trials)).head, in_one_unit(trial.scale for trial in trials)
    table = plain_table("trial", *trials[0].values, "density %", f"val {head}", f"test {head}", "seconds", left=0)
    table.add_column("")
    best = best_of(trials)
    for trial, scale in sorted(zip(trials, scales, strict=True), key=lambda pair: -pair[0].gain):
        figures = ["", "", "", ""]
        if trial.worth is not None and trial.test_accuracy is not None:
            figures = [
                f"{100 * (trial.density or 0):.2f}", measured(trial.worth, replicates, scale),
                measured(trial.test_accuracy, replicates, scale), f"{trial.seconds or 0:.1f}",
            ]  # fmt: skip
        values = [_word(value) for value in trial.values.values()]
        table.add_row(
            str(trial.number), *values, *figures, trial.reason or "", style="bold green" if trial is best else None
        )
    return table


def trial_pictures(trials: Sequence[Trial], space: Sequence[str], *, grid: bool) -> list[Picture]:
    """A heat map per pair of neighbouring grid settings (best over the others), or a chart per setting."""
    good = [trial for trial in trials if trial.worth is not None]
    if not good:
        return []
    if grid and len(space) > 1:
        return [_heat(good, down, across) for down, across in pairwise(space)]
    return [_scatter(good, name) for name in space]


def _heat(trials: Sequence[Trial], down: str, across: str) -> Heat:
    rows, columns = (list(dict.fromkeys(trial.values[name] for trial in trials)) for name in (down, across))
    scale, best = _scale(trials), dict[tuple[Any, Any], Trial]()
    for trial in trials:
        key = (trial.values[down], trial.values[across])
        best[key] = max(best.get(key, trial), trial, key=lambda each: each.gain)
    means = {key: scale.factor * trial.worth.mean for key, trial in best.items() if trial.worth is not None}
    values = [[means.get((row, column)) for column in columns] for row in rows]
    return Heat(
        f"sweep_{down}_{across}", f"Validation {scale.word} by {down} and {across}", across, down,
        [_word(each) for each in columns], [_word(each) for each in rows], values, f"validation {scale.axis}",
    )  # fmt: skip


def _scatter(trials: Sequence[Trial], name: str) -> Chart:
    numbers = all(isinstance(trial.values[name], (int, float)) for trial in trials)
    places = list(dict.fromkeys(trial.values[name] for trial in trials))
    ordered = sorted(trials, key=lambda trial: trial.values[name] if numbers else places.index(trial.values[name]))
    xs = [float(trial.values[name]) if numbers else float(places.index(trial.values[name])) for trial in ordered]
    scale = _scale(trials)
    ys = [scale.factor * trial.worth.mean for trial in ordered if trial.worth is not None]
    log = numbers and min(xs) > 0 and max(xs) >= 10 * min(xs)
    series = Series("trials", xs, ys, [scale.factor * t.worth.std for t in ordered if t.worth is not None], dash="none")
    return Chart(
        f"sweep_{name}", f"Validation {scale.word} by {name}", name, f"validation {scale.axis}", [series], log_x=log,
        places=() if numbers else [_word(each) for each in places],
        possible=(-math.inf, 100.0 if scale.unit else math.inf),
    )  # fmt: skip


def _scale(trials: Sequence[Trial]) -> MetricScale:
    """The scale of all trials; they share the metric unless it is searched for, and then it has no common unit."""
    scales = set(in_one_unit(trial.scale for trial in trials if trial.worth is not None)) or {ACCURACY}
    return scales.pop() if len(scales) == 1 else MetricScale("metric", 1.0, "")


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
