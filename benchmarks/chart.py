"""Results of a training benchmark as a table and as bars, with lower bounds as lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from .floors import BYTES, FLOOR, PEAK
from .records import Record

#: Colours of lower bounds and some variants (Okabe & Ito).
_LINES = {FLOOR: "#555555", PEAK: "#BBBBBB", BYTES: "#999999"}
_OURS, _OTHERS = "#0072B2", "#9ecae1"


def table(network: str, records: Sequence[Record]) -> None:
    """Print one network's results."""
    mine = [item for item in records if item["network"] == network]
    floor = next((item["median"] for item in mine if item["variant"] == FLOOR), None)
    out = Table(title=f"{network}, batch {mine[0]['batch']}: steps per second", box=None, header_style="bold")
    out.add_column("variant")
    for head in ("min", "median", "max", "÷ products"):
        out.add_column(head, justify="right")
    for item in sorted(mine, key=lambda item: item["median"]):
        add_line(out, [item["variant"]], item, floor, digits=1)
    Console().print(out)


def add_line(out: Table, first: list[str], item: Record, base: float | None, *, digits: int) -> None:
    """A record as a line: the spread of its rates (with this many digits if they are small), and its ratio to base."""
    places = digits if item["median"] < 100 else 0
    numbers = [f"{item[name]:,.{places}f}" for name in ("min", "median", "max")]
    ratio = f"{item['median'] / base:.2f}" if base else ""
    out.add_row(*first, *numbers, ratio, style="bold" if item["variant"].startswith("lthfunc") else None)


def panels(networks: Sequence[str], columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure with a panel for each network."""
    columns = min(columns, len(networks))
    rows = -(-len(networks) // columns)
    figure = Figure(figsize=(width * columns, 0.7 + height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(networks) :]:
        axes.set_axis_off()
    return figure, list(grid.flat[: len(networks)])


def draw(path: str, records: Sequence[Record], title: str) -> None:
    """Write the bars of all networks to a PNG or SVG file."""
    networks = list(dict.fromkeys(item["network"] for item in records))
    figure, grid = panels(networks, 2, 6.4, 3.3)
    for axes, network in zip(grid, networks, strict=True):
        mine = [item for item in records if item["network"] == network]
        bars = sorted((i for i in mine if i["variant"] not in _LINES), key=lambda item: item["median"])
        names = [item["variant"] for item in bars]
        widths = [item["median"] for item in bars]
        errors = [[i["median"] - i["min"] for i in bars], [i["max"] - i["median"] for i in bars]]
        colours = [_OURS if name.startswith("lthfunc") else _OTHERS for name in names]
        axes.barh(names, widths, xerr=errors, color=colours, error_kw={"lw": 1, "ecolor": "#333333"})
        for item in mine:
            if item["variant"] in _LINES:
                colour = _LINES[item["variant"]]
                axes.axvline(item["median"], color=colour, linewidth=1.5, linestyle="--", label=item["variant"])
        axes.set_title(f"{network}, batch {mine[0]['batch']}, density {min(i['density'] for i in mine):g}", fontsize=10)
        axes.set_xlabel("masked training steps per second")
        axes.spines[["top", "right"]].set_visible(False)
    lines, labels = grid[0].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
