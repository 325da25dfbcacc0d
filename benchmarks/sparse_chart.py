"""Results of training or execution against density, as tables and as speed-ups over dense."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lthfunc.reports.charts import GREY, MARKERS, PALETTE, Chart, Colour, Dash, Series
from lthfunc.reports.matplotlib_figures import panels, save

from .floors import BYTES, PEAK
from .records import Record

#: The variant that all others are compared with, by kind of measurement.
_BASES = ("lthfunc, compile", "oneDNN", "dense")
_VARIANTS = (
    "lthfunc, sparse", "SparseProp", "lthfunc, auto", "csr", "compact", "scipy.sparse CSR", "tuned", "ONNX Runtime",
    "tuned, units", "block", "2:4", "lthfunc, sparse, bf16",
)  # fmt: skip
#: Those with the colour of another one that is in the same picture.
_DASHED = ("block", "2:4")
#: How variants are drawn; lower bounds in grey.
_LOOKS: dict[str, tuple[Colour, Dash, str | None]] = {
    **{name: (PALETTE[number % len(PALETTE)], "dash" if name in _DASHED else "solid",
              MARKERS[number % len(MARKERS)])
       for number, name in enumerate(_VARIANTS)},
    PEAK: (GREY, "dash", None), BYTES: (GREY, "dot", None),
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
    """Write a PNG or SVG: a panel for each network and size of batch, a line for each variant, and one at 1."""
    networks, charts = list(dict.fromkeys(item["network"] for item in records)), []
    rates = [item for item in records if not item["unit"].startswith("ms")]
    for mine in panels_of(sorted(rates, key=lambda item: (networks.index(item["network"]), item["batch"]))).values():
        base = base_of(mine)
        if base is not None:
            name = f"{mine[0]['network']}, batch {mine[0]['batch']}"
            lines = [line for variant, look in _LOOKS.items() if (line := _line(variant, look, mine, base)).x]
            charts.append(
                Chart(name, name, "weights remaining (%)", "times as fast as dense", lines, log_x=True, log_y=True,
                      falling=True, across=[(1.0, "dense")])
            )  # fmt: skip
    save(panels(charts, title, columns=3), Path(path))


def _line(variant: str, look: tuple[Colour, Dash, str | None], records: Sequence[Record], base: Record) -> Series:
    mine = sorted((item for item in records if item["variant"] == variant), key=lambda item: -item["density"])
    densities, speeds = [100 * item["density"] for item in mine], [speedup(item, base) for item in mine]
    return Series(variant, densities, speeds, None, *look)
