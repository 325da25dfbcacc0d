"""Pictures drawn with matplotlib, and written as PNG or SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from lthfunc.printable import printable
from lthfunc.reports.charts import GREY, PALETTE, Bars, Chart, Heat, Picture, with_texts
from lthfunc.runs import safe_files

_DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "none": ""}
_MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
_MOST_LISTED = 12


def printed(picture: Picture) -> Figure:
    """A picture as a figure of its own."""
    picture = with_texts(picture, words)
    if isinstance(picture, Chart):
        made = figure(7, 4.5)
        draw_chart(made.subplots(), picture)
    else:
        made = _bars(picture) if isinstance(picture, Bars) else _heat(picture)
    made.axes[0].set_title(picture.title, fontsize=11)
    return made


def side_by_side(charts: Sequence[Chart], title: str, legends: Sequence[bool]) -> Figure:
    """Charts in rows of two. legends: which of them have one."""
    columns, rows = min(2, len(charts)), -(-len(charts) // 2)
    made = figure(5 * columns, 4.2 * rows)
    grid = made.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(charts) :]:
        axes.set_visible(False)
    for axes, chart, legend in zip(grid, charts, legends, strict=False):
        draw_chart(axes, with_texts(chart, words), legend=legend)
    made.suptitle(words(title), fontsize=11)
    return made


def draw_chart(axes: Any, chart: Chart, *, legend: bool = True) -> None:
    """Draw on axes that are there."""
    clean(axes)
    for value, name in chart.across:
        axes.axhline(value, color=GREY, linewidth=1, linestyle="--", label=name)
    for series in chart.series:
        ys = [float("nan") if value is None else value for value in series.y]
        spread = series.deviation if series.deviation and any(series.deviation) else None
        if spread and not series.marker:  # too many points for bars of their own
            low, high = ([y + sign * d for y, d in zip(ys, spread, strict=True)] for sign in (-1, 1))
            axes.fill_between(series.x, low, high, color=series.colour, alpha=0.15, linewidth=0)
            spread = None
        axes.errorbar(
            series.x,
            ys,
            yerr=spread,
            color=series.colour,
            linestyle=_DASHES[series.dash],
            marker=_MARKERS.get(series.marker or ""),
            markersize=5,
            linewidth=1.5,
            capsize=2,
            label=series.name if series.listed else None,
        )
        if series.marked is not None:
            at = series.marked
            axes.plot(series.x[at], series.y[at], marker="o", markersize=5, color=series.colour)
    for x, y, text in chart.notes:
        axes.annotate(text, (x, y), xytext=(0, -9), textcoords="offset points", ha="right", va="top", fontsize=9)
    _scale(axes, chart)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    if legend and sum(series.listed for series in chart.series) + len(chart.across) > 1:
        few = len(chart.series) <= _MOST_LISTED
        axes.legend(
            frameon=False, fontsize=8 if len(chart.series) > 4 else 10, title=chart.legend_title or None,
            title_fontsize=8, **({} if few else {"loc": "upper left", "bbox_to_anchor": (1, 1)}),
        )  # fmt: skip


def _scale(axes: Any, chart: Chart) -> None:
    if chart.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if chart.log_x:
        axes.set_xscale("log")
    if chart.falling:
        axes.invert_xaxis()
    if chart.ticks is not None:
        axes.set_xticks(list(chart.ticks), [f"{value:.3g}" for value in chart.ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks([], minor=True)
    elif not chart.log_x:
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    if chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    if chart.zero:
        axes.set_ylim(bottom=0)


def _plain(value: float, _: int) -> str:
    """A tick that a reader need not count the digits of."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.6g}"


def _bars(picture: Bars) -> Figure:
    groups = len(picture.groups)
    made = figure(7, 1.2 + 0.32 * len(picture.labels) * (1 if picture.stacked else max(1, 0.6 * groups)))
    axes = made.subplots()
    clean(axes)
    base = [0.0] * len(picture.labels)
    for number, (name, values, deviations) in enumerate(picture.groups):
        high = 0.8 if picture.stacked else 0.8 / groups
        shift = 0 if picture.stacked else (number - (groups - 1) / 2) * high
        places = [row + shift for row in range(len(picture.labels))]
        left = base if picture.stacked else None
        axes.barh(
            places, values, height=high, left=left, label=name, color=PALETTE[number % len(PALETTE)],
            xerr=deviations if deviations and any(deviations) else None, error_kw={"capsize": 2, "ecolor": GREY},
        )  # fmt: skip
        base = [low + value for low, value in zip(base, values, strict=True)]
    axes.set_yticks(range(len(picture.labels)), list(picture.labels))
    axes.invert_yaxis()
    if picture.log_x:
        axes.set_xscale("log")
    axes.set_xlabel(picture.x)
    if groups > 1:
        axes.legend(frameon=False, fontsize=8)
    return made


def _heat(picture: Heat) -> Figure:
    rows, columns = len(picture.rows), len(picture.columns)
    made = figure(2.4 + 0.55 * columns, 1.6 + 0.45 * rows)
    axes = made.subplots()
    values = [[float("nan") if value is None else value for value in row] for row in picture.values]
    shown = axes.imshow(values, cmap="viridis", aspect="auto")
    known = [value for row in values for value in row if value == value]
    low, high = min(known, default=0.0), max(known, default=1.0)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value == value:
                dark = (value - low) / ((high - low) or 1) < 0.6
                axes.text(
                    column, row, f"{value:.{picture.digits}f}", ha="center", va="center", fontsize=7,
                    color="white" if dark else "black",
                )  # fmt: skip
    axes.set_xticks(range(columns), list(picture.columns), rotation=45 if columns > 6 else 0)
    axes.set_yticks(range(rows), list(picture.rows))
    axes.set(xlabel=picture.x, ylabel=picture.y)
    made.colorbar(shown, ax=axes, label=picture.unit)
    return made


def words(text: str) -> str:
    """Text as matplotlib is to draw it: nothing in it is a formula, or a character that no font has."""
    return printable(text).replace("$", r"\$")


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def clean(axes: Any) -> None:
    """Axes without a frame, on a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def save(made: Figure, path: Path, run: Path | None = None) -> None:
    """Write a PNG, or an SVG where the name ends so, whole or not at all, into a folder that is made if missing.

    run: the folder of the run that the picture goes into, whose links are not followed.
    """
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        with rc_context({"svg.hashsalt": "lthfunc"}):  # the same figure, the same file
            made.savefig(buffer, format="svg", metadata={"Date": None})
    else:
        made.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    if run is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif path.parent != run:
        safe_files.make(run, path.parent)
    safe_files.write(run or path.parent, path, buffer.getvalue())
