"""Pictures drawn with matplotlib, in the shape and size of a slide, and written as PNG or SVG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from lthfunc.printable import printable
from lthfunc.reports.charts import GREY, PALETTE, Bars, Chart, Heat, Picture, linear_tick_text, tick_texts, with_texts
from lthfunc.runs import safe_files

_DASHES: dict[str, Any] = {
    "solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3)),
    "longdashdot": (0, (8, 2, 1, 2)), "none": "",
}  # fmt: skip
_MARKERS = {
    "circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P", "x": "X",
    "star": "*", "pentagon": "p", "hexagon": "h",
}  # fmt: skip
#: Of a slide in inches, by which letters are large enough for one, and in pixels.
_WIDTH, _HEIGHT, _PIXELS = 6.4, 3.6, 1920


def printed(picture: Picture) -> Figure:
    """A picture as a figure of its own."""
    return panels([picture], picture.title, picture.caption)


def panels(pictures: Sequence[Picture], title: str, caption: str = "", columns: int = 2) -> Figure:
    """Pictures side by side, with one legend for all."""
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    several = len(pictures) > 1
    made = figure(*(3.6 * columns, 0.6 + rows * 0.8 * max(_size(each)[1] for each in pictures)) if several
                  else _size(pictures[0]))  # fmt: skip
    grid = made.subplots(rows, columns, squeeze=False).flatten()
    listed: dict[str, Any] = {}
    for axes in grid[len(pictures) :]:
        axes.set_visible(False)
    for axes, picture in zip(grid, pictures, strict=False):
        picture = with_texts(picture, words)
        draw: Any = {Chart: _chart, Bars: _bars, Heat: _heat}[type(picture)]
        lines = draw(axes, picture)
        listed |= lines if len(lines) > 1 else {}
        axes.set(xlabel=picture.x)
        if several:
            axes.set_title(picture.title, loc="left", fontsize="medium")
    _add_legend(made, listed, getattr(pictures[0], "legend_title", ""))
    _entitle(made, words(title), words(caption))
    return made


def _size(picture: Picture) -> tuple[float, float]:
    """Width and height in inches."""
    if isinstance(picture, Bars):
        thick = 1 if picture.stacked else max(1, 0.6 * len(picture.groups))
        return _WIDTH, 1.2 + 0.27 * len(picture.labels) * thick
    if isinstance(picture, Heat):
        return max(_WIDTH, 2.0 + 0.5 * len(picture.columns)), max(2.7, 1.5 + 0.36 * len(picture.rows))
    return _WIDTH, _HEIGHT


def _chart(axes: Any, chart: Chart) -> dict[str, Any]:
    """Draw a chart; returns what a legend lists."""
    clean(axes)
    listed = {}
    for series in chart.series:
        colour, ys, errors = series.colour.light, np.array(series.y, float), chart.errors(series)
        bars = bool(series.marker) and not chart.bands
        if errors and not bars:  # or too many points for bars of their own
            axes.fill_between(series.x, ys - errors[0], ys + errors[1], color=colour, alpha=0.15, linewidth=0)
        drawn = axes.errorbar(
            series.x, ys, yerr=errors if bars else None, color=colour, linestyle=_DASHES[series.dash],
            marker=_MARKERS.get(series.marker or ""), markersize=5, linewidth=1.5, capsize=2, label=series.name,
        )  # fmt: skip
        if series.listed:
            listed[series.name] = drawn
        if series.marked is not None:
            at = series.marked
            axes.plot(series.x[at], series.y[at], marker="o", markersize=5, color=colour)
    for value, name in chart.across:
        listed[name] = axes.axhline(value, color=GREY.light, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
    _ticks(axes.xaxis, chart.x_ticks())
    _ticks(axes.yaxis, chart.y_ticks())
    if (alike := chart.x_range()) is not None:
        axes.set_xlim(alike)
    if chart.places:
        axes.set_xticks(range(len(chart.places)), list(chart.places))
    if chart.falling:
        axes.invert_xaxis()
    axes.set(ylabel=fill(chart.y, 30), ylim=chart.shown() or axes.get_ylim())
    return listed


def _ticks(axis: Any, ticks: Sequence[float] | None) -> None:
    """A logarithmic axis with these ticks, or a linear one with ticks of its own."""
    if ticks is None:
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: linear_tick_text(value, axis.get_majorticklocs())))
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_ticks(list(ticks), tick_texts(ticks))
    axis.set_minor_locator(NullLocator())


def _bars(axes: Any, picture: Bars) -> dict[str, Any]:
    groups, labels = len(picture.groups), len(picture.labels)
    clean(axes)
    axes.grid(visible=False, axis="y")
    listed: dict[str, Any] = {}
    base = [0.0] * labels
    high = 0.8 if picture.stacked else 0.8 / groups
    for number, (name, values, deviations) in enumerate(picture.groups):
        shift = 0 if picture.stacked else (number - (groups - 1) / 2) * high
        places = [row + shift for row in range(labels)]
        colour = PALETTE[number % len(PALETTE)].light
        errors = picture.errors(values, deviations)
        if picture.dots:
            listed[name] = axes.errorbar(values, places, xerr=errors, fmt="o", color=colour, markersize=5, capsize=2)
            continue
        listed[name] = axes.barh(
            places, values, height=high, left=base if picture.stacked else None, color=colour, xerr=errors,
            error_kw={"capsize": 2, "ecolor": "#333333"},
        )  # fmt: skip
        base = [low + value for low, value in zip(base, values, strict=True)]
    for value, name in picture.across:
        listed[name] = axes.axvline(value, color=GREY.light, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1.5)
    axes.set_yticks(range(labels), list(picture.labels))
    axes.set_ylim(labels - 0.4, -0.6)
    _ticks(axes.xaxis, picture.x_ticks())
    return listed


def _heat(axes: Any, picture: Heat) -> dict[str, Any]:
    values = np.array(picture.values, float)
    shown: Any = axes.imshow(values, cmap="viridis", aspect="auto")
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        colour = "white" if shown.norm(value) < 0.6 else "black"
        text = f"{value:.{picture.digits}f}"
        axes.text(column, row, text, ha="center", va="center", fontsize="x-small", color=colour)
    turned = 45 if sum(map(len, picture.columns)) > 50 else 0
    axes.set_xticks(range(len(picture.columns)), list(picture.columns), rotation=turned)
    axes.set_yticks(range(len(picture.rows)), list(picture.rows))
    axes.set_ylabel(picture.y)
    axes.figure.colorbar(shown, ax=axes, label=picture.unit)
    return {}


def images(
    rows: Sequence[tuple[str, Sequence[Any]]], heads: Sequence[str], title: str, *, size: float, cmap: Any = None
) -> Figure:
    """Images in a grid, each in its own proportions. rows: (name, images) each. size: greatest width, in inches."""
    heights = [images[0].shape[0] / images[0].shape[1] if images else 1.0 for _, images in rows]
    columns, size = max(len(images) for _, images in rows), min(size, 2 * _HEIGHT / sum(heights))
    made = figure(max(_WIDTH, size * columns + 1), (sum(heights) + 0.12 * len(rows)) * size + 0.6)
    grid = made.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for line, (name, images) in zip(grid, rows, strict=True):
        line[0].set_ylabel(words(name), rotation=0, ha="right", va="center", fontsize="small")
        for axes, image in zip(line, images, strict=False):
            axes.imshow(image, cmap=cmap, vmin=0)
    for axes, head in zip(grid[0], heads, strict=False):
        axes.set_title(words(head), fontsize="small")
    _entitle(made, words(title))
    return made


def words(text: str) -> str:
    """Text as matplotlib is to draw it: nothing in it is a formula, or a character that no font has."""
    return printable(text).replace("$", r"\$")


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), dpi=_PIXELS / width, layout="constrained")


def clean(axes: Any) -> None:
    """Axes without a frame, on a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _entitle(made: Figure, title: str, caption: str = "") -> None:
    made.suptitle(fill(title, int(9.5 * made.get_figwidth())), x=0.01, ha="left", fontsize="large", weight="bold")
    if caption:
        caption = fill(caption, int(13 * made.get_figwidth()))
        axes: Any = made.axes[0]
        under = axes.set_title(caption, loc="left", x=0.01, fontsize="small", color=GREY.light)
        # From the figure's edge, as the title; above the axes, whose own offset keeps its distance.
        under.set_transform(blended_transform_factory(made.transFigure, axes.transAxes + axes.titleOffsetTrans))


def _add_legend(made: Figure, listed: dict[str, Any], title: str = "") -> None:
    """A legend below everything, so that no line crosses it."""
    if listed:
        widest = 0.6 + 0.075 * max(map(len, listed))
        columns = max(1, min(len(listed), int(made.get_figwidth() / widest)))
        rows = -(-len(listed) // columns)
        made.set_figheight(made.get_figheight() + 0.19 * max(0, rows - 2))
        made.legend(
            list(listed.values()), list(listed), loc="outside lower left", ncols=columns, frameon=False,
            fontsize="small", title=title or None, title_fontsize="small", alignment="left",
        )  # fmt: skip


def save(made: Figure, path: Path, run: Path | None = None) -> None:
    """Write a PNG, or an SVG where the name ends so, whole or not at all, into a folder that is made if missing.

    run: the folder of the run that the picture goes into, whose links are not followed.
    """
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        with rc_context({"svg.hashsalt": "lthfunc"}):  # the same figure, the same file
            made.savefig(buffer, format="svg", metadata={"Date": None})
    else:
        made.savefig(buffer, format="png", metadata={"Software": None})
    if run is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif path.parent != run:
        safe_files.make(run, path.parent)
    safe_files.write(run or path.parent, path, buffer.getvalue())
