"""Methods compared: a table and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from lthfunc.catalog.courses import COURSES
from lthfunc.experiments.metrics import MetricScale
from lthfunc.experiments.records import Record, Spread, scale_of_records, search_energy, spread
from lthfunc.reports.charts import Bars
from lthfunc.reports.tables import ACCURACY, in_short, measured, with_unit

#: Columns of a screen from which on the table says what each method is.
_EXPLAINED = 110


class MethodRow(NamedTuple):
    """A method over its seeds. steps: of training, as multiples of one training. kwh: drawn by it, where metered."""

    method: str
    replicates: int
    kept: float
    density: float
    test_accuracy: Spread
    steps: float
    seconds: float
    collapsed: tuple[str, ...]
    kwh: float | None = None
    scale: MetricScale = ACCURACY


def method_rows(records: Sequence[Record], steps: int) -> list[MethodRow]:
    """A row per method, the best first."""
    groups: dict[str, list[Record]] = {}
    for item in records:
        groups.setdefault(item["method"], []).append(item)
    rows = [
        MethodRow(
            method,
            len(group),
            statistics.fmean(item["kept"] for item in group),
            statistics.fmean(item["density"] for item in group),
            spread(item["test_accuracy"] for item in group),
            statistics.fmean(item["steps"] for item in group) / steps,
            statistics.fmean(item["seconds"] for item in group),
            tuple(dict.fromkeys(layer for item in group for layer in item["collapsed"])),
            statistics.fmean(map(search_energy, group)) if all("energy" in item for item in group) else None,
            scale_of_records(group),
        )
        for method, group in groups.items()
    ]
    return sorted(rows, key=lambda row: row.scale.gain(0, row.test_accuracy.mean))


def method_table(rows: Sequence[MethodRow], width: int) -> Table:
    """Accuracies at one density, what each method's training cost and, if a screen is wide enough, what it is."""
    replicates = max(row.replicates for row in rows)
    title = f"mean ± standard deviation of {replicates} seeds" if replicates > 1 else None
    table = Table(title=title, title_style="dim", title_justify="left", header_style="bold", box=None, pad_edge=False)
    table.add_column("method", no_wrap=True)
    metered = any(row.kwh is not None for row in rows)
    for head in (
        "density %",
        f"test {in_short(rows[0].scale).head}",
        "trainings",
        "seconds",
        *(["Wh"] if metered else []),
    ):
        table.add_column(head, justify="right", no_wrap=True)
    explained = width >= _EXPLAINED
    if explained:
        table.add_column("what it is", style="dim")
    for row in rows:
        what = COURSES.about(row.method) + (f"; empty: {', '.join(row.collapsed)}" if row.collapsed else "")
        table.add_row(
            row.method,
            f"{100 * row.density:.2f}",
            measured(row.test_accuracy, row.replicates, row.scale),
            f"{row.steps:.1f}",
            f"{row.seconds:.1f}",
            *(["–" if row.kwh is None else f"{1000 * row.kwh:.2f}"] if metered else []),
            *([what] if explained else []),
        )
    return table


def most_accurate(rows: Sequence[MethodRow]) -> str:
    """The most accurate method beside the dense network, in a sentence; empty where nothing was pruned."""
    pruned = [row for row in rows if row.method != "dense"]
    if not pruned:
        return ""
    reached = {row.method: with_unit(row.test_accuracy, row.replicates, row.scale) for row in rows}
    best = pruned[0]
    dense = f"; the dense network has {reached['dense']}" if "dense" in reached else ""
    seeds = (
        f"over {best.replicates} seeds" if best.replicates > 1 else "with one seed: how much seeds differ is not known"
    )
    most = "Most accurate" if best.scale.unit else f"The best {best.scale.word}"
    return f"{most} on the test set: {best.method}, {reached[best.method]}{dense}, {seeds}."


def method_picture(rows: Sequence[MethodRow], title: str) -> Bars:
    """A dot per method with its deviation, the most accurate at the top; the dense network is the line."""
    shown = [row for row in rows if row.method != "dense"]
    scale = rows[0].scale

    def error(row: MethodRow) -> float:
        value = row.test_accuracy.mean
        return scale.factor * (value if scale.lower_is_better else 1 - value)

    errors = list(map(error, shown))
    name = "mean ± standard deviation" if max(row.replicates for row in rows) > 1 else "one seed"
    group = (name, errors, [scale.factor * row.test_accuracy.std for row in shown])
    dense = [(error(row), "dense") for row in rows if row.method == "dense"]
    axis = f"test {scale.axis}" if scale.lower_is_better else "test error (%)"
    return Bars("methods", title, axis, [row.method for row in shown], [group], dots=True, across=dense)
