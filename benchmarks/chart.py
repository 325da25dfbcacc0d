"""Results of a training benchmark as a table and as bars, with lower bounds as lines."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lthfunc.reports.charts import BLACK, BLUE, GREY

from .floors import BYTES, FLOOR, PEAK
from .records import Record

#: Dashes of lower bounds.
_LINES = {FLOOR: "--", PEAK: ":", BYTES: "-."}


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


def draw(path: str, records: Sequence[Record], title: str) -> None:
    """Write the bars of all networks to a PNG or SVG file."""
    networks = list(dict.fromkeys(item["network"] for item in records))
    columns = min(2, len(networks))
    rows = -(-len(networks) // columns)
    figure = Figure(figsize=(6.4 * columns, 0.7 + 3.3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(networks) :]:
        axes.set_axis_off()
    for axes, network in zip(grid, networks, strict=False):
        mine = [item for item in records if item["network"] == network]
        bars = sorted((i for i in mine if i["variant"] not in _LINES), key=lambda item: item["median"])
        names = [item["variant"] for item in bars]
        widths = [item["median"] for item in bars]
        errors = [[i["median"] - i["min"] for i in bars], [i["max"] - i["median"] for i in bars]]
        colours = [(BLUE if name.startswith("lthfunc") else GREY).light for name in names]
        axes.barh(names, widths, xerr=errors, color=colours, error_kw={"lw": 1, "ecolor": BLACK.light})
        for item in mine:
            if item["variant"] in _LINES:
                axes.axvline(item["median"], color=BLACK.light, linewidth=1.2, linestyle=_LINES[item["variant"]],
                             label=item["variant"])  # fmt: skip
        axes.set_title(f"{network}, batch {mine[0]['batch']}, density {min(i['density'] for i in mine):g}", fontsize=10)
        axes.set_xlabel("masked training steps per second")
        axes.spines[["top", "right"]].set_visible(False)
    lines, labels = grid[0].get_legend_handles_labels()
    figure.legend(lines, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=2)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
