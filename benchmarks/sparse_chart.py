"""Results of the sparse benchmark as tables, and as how many times as fast as dense against density."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from rich.console import Console
from rich.table import Table

from .chart import add_line, panels
from .floors import PEAK
from .records import Record

#: What all else is compared with, by what is measured.
_BASES = ("lthfunc, compile", "oneDNN", "dense")
_TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
#: Okabe & Ito's palette.
_COLOURS = {
    "lthfunc, sparse": "#0072B2", "lthfunc, auto": "#56B4E9", "SparseProp": "#D55E00", "torch CSR": "#E69F00",
    "scipy.sparse CSR": "#CC79A7", PEAK: "#888888",
}  # fmt: skip


def base_of(records: Sequence[Record]) -> float | None:
    """The dense rate among the records of one network."""
    return next((item["median"] for item in records if item["variant"] in _BASES), None)


def table(records: Sequence[Record]) -> None:
    """Print a table for each network."""
    for network in dict.fromkeys(item["network"] for item in records):
        mine = [item for item in records if item["network"] == network]
        base = base_of(mine)
        title = f"{network}, batch {mine[0]['batch']}: {mine[0]['unit']}"
        out = Table(title=title, box=None, header_style="bold")
        for head, side in (("density", "right"), ("variant", "left"), ("min", "right"), ("median", "right"),
                           ("max", "right"), ("÷ dense", "right")):  # fmt: skip
            out.add_column(head, justify=side)  # type: ignore[arg-type]
        for item in sorted(mine, key=lambda item: (-item["density"], item["median"])):
            add_line(out, [f"{item['density']:g}", item["variant"]], item, base, digits=2)
        Console().print(out)


def draw(path: str, records: Sequence[Record], title: str) -> None:
    """Write a PNG or SVG: a panel for each network, a line for each variant, and a line at 1."""
    networks = list(dict.fromkeys(item["network"] for item in records))
    figure, grid = panels(networks, 3, 4.6, 3.4)
    labelled = {}
    for axes, network in zip(grid, networks, strict=True):
        mine = [item for item in records if item["network"] == network]
        base = base_of(mine)
        if base is None:
            continue
        axes.axhline(1, color="#333333", linewidth=1)
        for variant, colour in _COLOURS.items():
            line = sorted((item for item in mine if item["variant"] == variant), key=lambda item: -item["density"])
            if not line:
                continue
            floor = variant == PEAK
            (drawn,) = axes.plot(
                [100 * item["density"] for item in line], [item["median"] / base for item in line], color=colour,
                marker=None if floor else "o", markersize=4, linewidth=1.5, linestyle="--" if floor else "-",
            )  # fmt: skip
            labelled[variant] = drawn
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_title(f"{network}, batch {mine[0]['batch']}", fontsize=10)
        axes.set_xlabel("weights remaining (%)")
        axes.set_ylabel("times as fast as dense")
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, axes.get_ylim())):
            axis.set_major_locator(FixedLocator([value for value in _TICKS if low <= value <= high]))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(
        list(labelled.values()), list(labelled), frameon=False, fontsize=9, loc="outside lower center", ncols=6
    )
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
