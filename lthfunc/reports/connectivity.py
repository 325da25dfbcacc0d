"""Barriers between copies of a network: a table and two charts."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from lthfunc.experiments.metrics import MetricScale
from lthfunc.experiments.records import Record, Spread, scale_of_records, spread
from lthfunc.reports.charts import MARKERS, Chart, Series, ordered
from lthfunc.reports.tables import ACCURACY, measured, plain_table


class BarrierRow(NamedTuple):
    """Over the seeds: error of the copies, the highest error between them, and the barrier.

    Of a count, of which more is better, the copies' own, the lowest between them, and the barrier.
    """

    k: int
    replicates: int
    ends: Spread
    highest: Spread
    barrier: Spread
    scale: MetricScale = ACCURACY


def barrier_rows(records: Sequence[Record]) -> list[BarrierRow]:
    """A row per step at which the copies part."""
    rows, scale = [], scale_of_records(records)
    for k in sorted({item["k"] for item in records}):
        group = [item for item in records if item["k"] == k]
        ends = spread(_shown((item["error"][0] + item["error"][-1]) / 2, scale) for item in group)
        highest = spread(_shown(max(item["error"]), scale) for item in group)
        rows.append(BarrierRow(k, len(group), ends, highest, spread(item["barrier"] for item in group), scale))
    return rows


def barrier_table(rows: Sequence[BarrierRow]) -> Table:
    """Errors in per cent of the test set, or the metric itself where it is no share."""
    error = _error(rows[0].scale)
    worst = f"{'lowest' if error.counts else 'highest'} between"
    heads = (f"{words} {error.unit}".rstrip() for words in (f"their test {error.word}", worst, "barrier"))
    table = plain_table("copies from step", *heads, left=0)
    for row in rows:
        cells = [measured(value, row.replicates, row.scale) for value in (row.ends, row.highest, row.barrier)]
        table.add_row(f"{row.k:,}", *cells)
    return table


def _error(scale: MetricScale) -> MetricScale:
    """The scale of errors by a metric: of what a share leaves, else of itself."""
    return scale if scale.lower_is_better or scale.counts else scale._replace(word="error")


def _shown(error: float, scale: MetricScale) -> float:
    """What is shown of an error, which is recorded as 1 - the metric where more of that is better."""
    return 1 - error if scale.counts else error


def barrier_charts(records: Sequence[Record]) -> list[Chart]:
    """Error along the lines (means over seeds), and the barrier against the step at which the copies part."""
    rows = barrier_rows(records)
    scale, lines = _error(rows[0].scale), []
    for number, row in enumerate(rows):
        group = [item for item in records if item["k"] == row.k]
        error = [
            scale.factor * _shown(statistics.fmean(values), scale)
            for values in zip(*(item["error"] for item in group), strict=True)
        ]
        look = (*ordered(number, len(rows)), MARKERS[number % len(MARKERS)])
        lines.append(Series(f"from step {row.k:,}", group[0]["alphas"], error, None, *look))
    barrier = Series(
        "barrier", [row.k for row in rows], [scale.factor * row.barrier.mean for row in rows],
        [scale.factor * row.barrier.std for row in rows],
    )  # fmt: skip
    return [
        Chart(
            "connectivity", "Between two copies of the network", "from one copy to the other", f"test {scale.axis}",
            lines,
        ),
        Chart(
            "barrier", "Connectivity barrier", "step at which the copies part",
            f"barrier ({f'{scale.unit} of the test set' if scale.unit else scale.word})",
            [barrier], across=[(0.0, "no barrier")],
        ),
    ]  # fmt: skip
