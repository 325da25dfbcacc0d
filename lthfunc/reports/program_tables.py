"""Tables of a program and its cost."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.table import Table

from lthfunc.catalog.deployment import FORMATS
from lthfunc.deployment.specialized_module import STEADY, ProgramReport
from lthfunc.reports.tables import plain_table

#: Times whose quartiles are farther apart than this share of the median deserve a warning.
_NOISY = 0.1


def form_table(report: ProgramReport) -> Table | None:
    """The measured candidates, the fastest first; None where nothing was measured."""
    measured = report.measured
    if measured is None:
        return None
    title = f"measured on batches of {measured.batch}: medians and quartiles of {len(measured.turns['dense'])} turns"
    table = plain_table("form", "µs per batch", "quartiles", "samples/s", "× dense", title=title)
    for name, seconds in sorted(measured.seconds.items(), key=lambda item: item[1]):
        chosen, times = name == report.name, measured.speedup(name)
        first, third = measured.quartiles(name)
        table.add_row(
            f"{name} ←" if chosen else name, f"{1e6 * seconds:,.1f}", f"{1e6 * first:,.1f}–{1e6 * third:,.1f}",
            f"{measured.batch / seconds:,.0f}", "?" if times is None else f"{times:.2f}",
            style="bold green" if chosen else None,
        )  # fmt: skip
    return table


def beside_line(report: ProgramReport) -> str | None:
    """Which faster form of another runtime was not chosen, and how to choose it; None where there is none."""
    seconds = {} if report.measured is None else report.measured.seconds
    peers = [name for name, entry in FORMATS.items() if entry.peer and name in seconds]
    faster = [f"--format {name}" for name in peers if seconds[name] < seconds[report.name]]
    if not faster:
        return None
    return f"← is the fastest of this library's programs; others are only compared with, unless chosen: {faster[0]}"


def steadiness_line(report: ProgramReport) -> str | None:
    """A warning where times are so uncertain that ratios are, too, or are not shown; None where they aren't."""
    measured = report.measured
    load = f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)" if hasattr(os, "getloadavg") else ""
    again = "Measure again when the machine is idle."
    if measured is not None and measured.disturbed:
        share = f"{100 * (measured.processor_share or 0):.0f} % of the time"
        return f"Other programs kept this one waiting: it ran for {share}{load}, so no ratio is shown (?). {again}"
    varied = [] if measured is None else [name for name in measured.turns if measured.spread(name) > _NOISY]
    if not varied:
        return None
    return (
        f"Times of {', '.join(varied)} vary{load}: their quartiles are more than {100 * _NOISY:.0f} % of the median "
        f"apart; above {100 * STEADY:.0f} % no ratio is shown (?). {again}"
    )


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
