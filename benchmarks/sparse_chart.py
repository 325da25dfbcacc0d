"""Results of training or execution against density, as tables and as speed-ups over dense."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter
from rich.console import Console
from rich.table import Table

from .chart import panels
from .floors import BYTES, PEAK
from .records import Record

#: The variant that all others are compared with, by kind of measurement.
_BASES = ("lthfunc, compile", "oneDNN", "dense")
_TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
#: Okabe & Ito's palette.
_COLOURS = {
    "lthfunc, sparse": "#0072B2", "lthfunc, auto": "#56B4E9", "SparseProp": "#D55E00", "tuned": "#0072B2",
    "compact": "#009E73", "tuned, units": "#F0E442", "csr": "#E69F00", "scipy.sparse CSR": "#CC79A7",
    "ONNX Runtime": "#D55E00", "2:4": "#D55E00", "block": "#56B4E9", PEAK: "#888888", BYTES: "#BBBBBB",
}  # fmt: skip


def base_of(records: Sequence[Record]) -> Record | None:
    """The dense record among those of one panel."""
    return next((item for item in records if item["variant"] in _BASES), None)


def speedup(item: Record, base: Record) -> float:
    """How many times as fast: of rates, or of times."""
    ratio = float(item["median"] / base["median"])
    return 1 / ratio if item["unit"].startswith("ms") else ratio


def panels_of(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by what is compared with each other."""
    found: dict[str, list[Record]] = {}
    for item in records:
        found.setdefault(f"{item['network']}, batch {item['batch']}: {item['unit']}", []).append(item)
    return found


def table(records: Sequence[Record]) -> None:
    """Print a table for each network, batch and unit."""
    for title, mine in panels_of(records).items():
        base = base_of(mine)
        out = Table(title=title, box=None, header_style="bold")
        for head, side in (("density", "right"), ("variant", "left"), ("min", "right"), ("median", "right"),
                           ("max", "right"), ("× dense", "right")):  # fmt: skip
            out.add_column(head, justify=side)  # type: ignore[arg-type]
        for item in sorted(mine, key=lambda item: (-item["density"], item["median"])):
            numbers = [f"{item[name]:,.{_digits(item)}f}" for name in ("min", "median", "max")]
            ratio = f"{speedup(item, base):.2f}" if base else ""
            ours = item["variant"].startswith(("lthfunc", "tuned"))
            out.add_row(f"{item['density']:g}", item["variant"], *numbers, ratio, style="bold" if ours else None)
        Console().print(out)


def _digits(item: Record) -> int:
    return 4 if item["median"] < 1 else 2 if item["median"] < 100 else 0


def draw(path: str, records: Sequence[Record], title: str) -> None:
    """Write a PNG or SVG: a panel for each network, a line for each variant, and a line at 1."""
    groups = panels_of([item for item in records if not item["unit"].startswith("ms")])
    figure, grid = panels(list(groups), 3, 4.6, 3.4)
    labelled = {}
    for axes, mine in zip(grid, groups.values(), strict=True):
        base = base_of(mine)
        if base is None:
            continue
        axes.axhline(1, color="#333333", linewidth=1)
        for variant, colour in _COLOURS.items():
            line = sorted((item for item in mine if item["variant"] == variant), key=lambda item: -item["density"])
            if not line:
                continue
            floor = variant in (PEAK, BYTES)
            (drawn,) = axes.plot(
                [100 * item["density"] for item in line], [speedup(item, base) for item in line], color=colour,
                marker=None if floor else "o", markersize=4, linewidth=1.5, linestyle="--" if floor else "-",
            )  # fmt: skip
            labelled[variant] = drawn
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.invert_xaxis()
        axes.set_title(f"{mine[0]['network']}, batch {mine[0]['batch']}", fontsize=10)
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
