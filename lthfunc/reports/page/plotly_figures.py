"""Pictures as Plotly's figures: plain values, colours of the page left to its script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from lthfunc.reports.charts import GREY, PALETTE, Bars, Chart, Heat, Picture, Series, with_texts


def figure_of(picture: Picture) -> dict[str, Any]:
    """``{"data": […], "layout": {…}}``, free of NaN."""
    # Texts may come from files, and Plotly reads a few tags in what it shows.
    picture = with_texts(picture, partial(html.escape, quote=False))
    if isinstance(picture, Chart):
        return _chart(picture)
    return _bars(picture) if isinstance(picture, Bars) else _heat(picture)


def _chart(chart: Chart) -> dict[str, Any]:
    data: list[dict[str, Any]] = []
    for number, series in enumerate(chart.series):
        data += _lines(series, str(number))
    xs = [x for series in chart.series for x in series.x]
    for value, name in chart.across:
        data.append({
            "type": "scatter", "mode": "lines", "x": [max(xs), min(xs)], "y": [value, value], "name": name,
            "line": {"color": GREY, "dash": "dash", "width": 1},
        })  # fmt: skip
    x: dict[str, Any] = {"title": {"text": chart.x}}
    if chart.log_x:
        x["type"] = "log"
    if chart.falling:
        x["autorange"] = "reversed"
    if chart.ticks is not None:
        x |= {"tickvals": list(chart.ticks), "ticktext": [f"{value:.3g}" for value in chart.ticks]}
    y: dict[str, Any] = {"title": {"text": chart.y}}
    if chart.log_y:
        ticks = _log_ticks([value for series in chart.series for value in series.y if value])
        y |= {"type": "log", "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    if chart.y_range is not None:
        y["range"] = list(chart.y_range)
    if chart.zero:
        y["rangemode"] = "tozero"
    listed = sum(each.get("showlegend", True) for each in data) > 1
    return {"data": data, "layout": {"xaxis": x, "yaxis": y, "showlegend": listed}}


def _log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 of each decade; over many decades their beginnings."""
    if not values:
        return []
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high / low < 1000 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    # By way of text, since 5 * 10**-3 is not the 0.005 that a reader expects.
    found = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [value for value in found if low / 2 <= value <= 2 * high]


def _mode(series: Series) -> str:
    parts = (["lines"] if series.dash != "none" else []) + (["markers"] if series.marker else [])
    return "+".join(parts) or "none"


def _lines(series: Series, group: str) -> list[dict[str, Any]]:
    line: dict[str, Any] = {
        "type": "scatter", "mode": _mode(series), "x": list(series.x),
        "y": list(series.y), "name": series.name, "legendgroup": group, "showlegend": series.listed,
        "line": {"color": series.colour, "dash": series.dash if series.dash != "none" else "solid", "width": 2},
    }  # fmt: skip
    if series.marker:
        line["marker"] = {"symbol": series.marker, "size": 7}
    if series.marked is not None:
        sizes = [9 if place == series.marked else 0 for place in range(len(series.x))]
        line |= {"mode": "lines+markers", "marker": {"size": sizes, "color": series.colour, "opacity": 1}}
    if series.deviation is None or not any(series.deviation):
        return [line]
    known = [(x, y, d) for x, y, d in zip(series.x, series.y, series.deviation, strict=True) if y is not None]
    line["customdata"] = list(series.deviation)
    line["hovertemplate"] = "%{y:.5g} ± %{customdata:.2g}"
    band = {
        "type": "scatter", "mode": "lines", "x": [x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        "y": [y + d for _, y, d in known] + [y - d for _, y, d in reversed(known)], "fill": "toself",
        "fillcolor": series.colour + "26", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False,
        "legendgroup": group,
    }  # fmt: skip
    return [band, line]


def _bars(picture: Bars) -> dict[str, Any]:
    data = []
    for number, (name, values, deviations) in enumerate(picture.groups):
        bar: dict[str, Any] = {
            "type": "bar", "orientation": "h", "y": list(picture.labels), "x": list(values),
            "name": name, "marker": {"color": PALETTE[number % len(PALETTE)]},
        }  # fmt: skip
        if deviations and any(deviations):
            bar["error_x"] = {"type": "data", "array": list(deviations), "color": GREY}
        data.append(bar)
    x: dict[str, Any] = {"title": {"text": picture.x}}
    if picture.log_x:
        x["type"] = "log"
    return {
        "data": data,
        "layout": {
            "xaxis": x, "yaxis": {"autorange": "reversed", "automargin": True},
            "barmode": "stack" if picture.stacked else "group", "showlegend": len(data) > 1,
        },
    }  # fmt: skip


def _heat(picture: Heat) -> dict[str, Any]:
    return {
        "data": [{
            "type": "heatmap", "x": list(picture.columns), "y": list(picture.rows),
            "z": [list(row) for row in picture.values],
            "colorscale": "Viridis", "texttemplate": f"%{{z:.{picture.digits}f}}", "textfont": {"size": 10},
            "colorbar": {"title": {"text": picture.unit}, "thickness": 12},
            "hovertemplate": f"{picture.x} %{{x}}<br>{picture.y} %{{y}}<br>%{{z:.4g}}<extra></extra>",
        }],
        "layout": {
            "xaxis": {"title": {"text": picture.x}, "type": "category"},
            "yaxis": {"title": {"text": picture.y}, "type": "category", "autorange": "reversed"},
        },
    }  # fmt: skip
