"""Pictures as Plotly's figures: plain values, colours of the page left to its script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

from lthfunc.reports.charts import GREY, PALETTE, Bars, Chart, Colour, Heat, Picture, Series, tick_texts, with_texts


def figure_of(picture: Picture) -> dict[str, Any]:
    """``{"data": […], "layout": {…}}``, free of NaN. A trace's `meta` is its colour on a dark page."""
    # Texts may come from files, and Plotly reads a few tags in what it shows.
    picture = with_texts(picture, partial(html.escape, quote=False))
    if isinstance(picture, Chart):
        return _chart(picture)
    return _bars(picture) if isinstance(picture, Bars) else _heat(picture)


def _chart(chart: Chart) -> dict[str, Any]:
    data = [trace for number, series in enumerate(chart.series) for trace in _lines(series, str(number), chart)]
    xs = [x for series in chart.series for x in series.x]
    ends = [max(xs), min(xs)]
    data += [
        _trace(GREY, name=name, x=ends, y=[value, value], mode="lines", line={"dash": "dash", "width": 1.5})
        for value, name in chart.across
    ]
    x: dict[str, Any] = {"title": {"text": chart.x}, **_log(chart.x_ticks())}
    if chart.places:
        x |= {"tickvals": list(range(len(chart.places))), "ticktext": list(chart.places)}
    if chart.falling:
        x["autorange"] = "reversed"
    elif (alike := chart.x_range()) is not None:
        x["range"] = [math.log10(end) for end in alike]
    y: dict[str, Any] = {"title": {"text": chart.y}, **_log(chart.y_ticks())}
    if (shown := chart.shown()) is not None:
        y["range"] = list(shown)
    legend = {"title": {"text": chart.legend_title, "side": "top"}}
    listed = sum(each.get("showlegend", True) for each in data) > 1
    return {"data": data, "layout": {"xaxis": x, "yaxis": y, "showlegend": listed, "legend": legend}}


def _log(ticks: Sequence[float] | None) -> dict[str, Any]:
    if ticks is None:
        return {}
    return {"type": "log", "tickvals": list(ticks), "ticktext": tick_texts(ticks), "tickangle": 0}


def _trace(colour: Colour, line: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"type": "scatter", "meta": colour.dark, "line": {"color": colour.light, **line}, **rest}


def _lines(series: Series, group: str, chart: Chart) -> list[dict[str, Any]]:
    lines = series.dash != "none"
    line = _trace(
        series.colour, {"dash": series.dash if lines else "solid", "width": 2}, x=list(series.x), y=list(series.y),
        mode="+".join(["lines"] * lines + ["markers"] * bool(series.marker)) or "none", name=series.name,
        legendgroup=group, showlegend=series.listed,
    )  # fmt: skip
    if series.marker:
        line["marker"] = {"symbol": series.marker, "size": 7}
    if series.marked is not None:
        sizes = [9 if place == series.marked else 0 for place in range(len(series.x))]
        line |= {"mode": "lines+markers", "marker": {"size": sizes, "opacity": 1}}
    errors = chart.errors(series)
    if series.deviation is None or errors is None:
        return [line]
    line["customdata"] = list(series.deviation)
    line["hovertemplate"] = "%{y:.5g} ± %{customdata:.2g}"
    points = zip(series.x, series.y, *errors, strict=True)
    known = [(x, y - below, y + above) for x, y, below, above in points if y is not None]
    band = _trace(
        series.colour, {"width": 0}, x=[x for x, _, _ in known] + [x for x, _, _ in reversed(known)],
        y=[high for _, _, high in known] + [low for _, low, _ in reversed(known)], mode="lines", fill="toself",
        fillcolor=series.colour.light, opacity=0.15, hoverinfo="skip", showlegend=False, legendgroup=group,
    )  # fmt: skip
    return [band, line]


def _bars(picture: Bars) -> dict[str, Any]:
    data = []
    for number, (name, values, deviations) in enumerate(picture.groups):
        colour = PALETTE[number % len(PALETTE)]
        kind = {"type": "scatter", "mode": "markers"} if picture.dots else {"type": "bar", "orientation": "h"}
        bar: dict[str, Any] = {
            **kind, "y": list(picture.labels), "x": list(values), "name": name,
            "marker": {"color": colour.light}, "meta": colour.dark,
        }  # fmt: skip
        if errors := picture.errors(values, deviations):
            bar["error_x"] = {"type": "data", "array": errors[1], "arrayminus": errors[0], "color": GREY.light}
        data.append(bar)
    ends = [picture.labels[0], picture.labels[-1]]
    data += [
        _trace(GREY, name=name, x=[value, value], y=ends, mode="lines", line={"dash": "dash", "width": 1.5})
        for value, name in picture.across
    ]
    x = {"title": {"text": picture.x}, **_log(picture.x_ticks())}
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
