"""Tables of a program and its cost."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lthfunc.deployment.specialized_module import ProgramReport
from lthfunc.reports.tables import plain_table


def form_table(report: ProgramReport) -> Table | None:
    """The measured candidates, the fastest first; None where nothing was measured."""
    measured = report.measured
    if measured is None:
        return None
    title = f"measured on batches of {measured.batch}"
    table = plain_table("form", "µs per batch", "samples/s", "× dense", title=title)
    for name, seconds in sorted(measured.seconds.items(), key=lambda item: item[1]):
        chosen = name == report.name
        table.add_row(
            f"{name} ←" if chosen else name, f"{1e6 * seconds:,.1f}", f"{measured.batch / seconds:,.0f}",
            f"{measured.speedup(name):.2f}", style="bold green" if chosen else None,
        )  # fmt: skip
    return table


def layer_cost_table(report: ProgramReport) -> Table:
    """A line per layer: weights, density, FLOPs per example, and its format where layers have their own."""
    table = plain_table("layer", "weights left", "density %", "FLOPs", "left")
    if report.formats:
        table.add_column("format")
    for name, layer in report.cost.layers.items():
        cells = [
            name.removesuffix(".weight"), f"{layer.kept:,} / {layer.total:,}", f"{100 * layer.kept / layer.total:.2f}",
            f"{layer.flops:,.0f}", f"{layer.effective:,.0f}",
        ]  # fmt: skip
        if report.formats:
            cells.append(report.formats.get(name.removesuffix(".weight"), "dense"))
        table.add_row(*cells)
    return table


def cost_lines(report: ProgramReport) -> list[str]:
    """Lines on what the program saves in theory."""
    cost, (before, after) = report.cost, report.bytes
    compacted = "" if report.compact_flops is None else f"; {report.compact_flops:,.0f} without dead units"
    return [
        f"compression ratio {cost.compression_ratio:.1f} ({cost.parameters:,} parameters, {cost.remaining:,} remain); "
        f"weights take {size(before)} dense, {size(after)} in the program",
        f"theoretical speed-up {cost.theoretical_speedup:.1f} ({cost.flops:,.0f} FLOPs per example, "
        f"{cost.effective_flops:,.0f} of surviving weights{compacted})",
    ]


def size_table(rows: Sequence[tuple[str, int]]) -> Table:
    """Files and their sizes, compared with the first one."""
    table = plain_table("file", "bytes", "of dense %")
    for name, count in rows:
        table.add_row(name, f"{count:,}", f"{100 * count / rows[0][1]:.1f}")
    return table


def size(count: float) -> str:
    """A number of bytes with its unit."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
