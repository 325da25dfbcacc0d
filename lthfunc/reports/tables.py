"""Results as a rich table and as plain lines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Row, Spread
from lthfunc.reports.spacing import spread_out


def percent(value: Spread, replicates: int, digits: int = 2) -> str:
    """An accuracy in per cent, with ± standard deviation where there are several replicates."""
    text = f"{100 * value.mean:.{digits}f}"
    return f"{text} ± {100 * value.std:.{digits}f}" if replicates > 1 else text


def steps(value: Spread, replicates: int) -> str:
    """A step number, with ± standard deviation where there are several replicates."""
    return f"{value.mean:,.0f} ± {value.std:,.0f}" if replicates > 1 else f"{value.mean:,.0f}"


def plain_table(*heads: str, left: int = 1, title: str | None = None) -> Table:
    """An empty table without lines: the first `left` columns flush left, the others flush right."""
    table = Table(title=title, title_style="dim", title_justify="left", header_style="bold", box=None, pad_edge=False)
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < left else "right")
    return table


def accuracy_heads(word: str) -> tuple[str, ...]:
    """Heads of `accuracy_cells`. word: the metric."""
    return "density %", f"val {word} %", f"test {word} %", "early stop"


def accuracy_cells(row: Row) -> list[str]:
    """A row's density, accuracies and early-stopping step."""
    accuracies = (percent(each, row.replicates) for each in (row.val_accuracy, row.test_accuracy))
    return [f"{100 * row.density:.2f}", *accuracies, steps(row.early_stop_step, row.replicates)]


def result_table(rows: Sequence[Row], *, layers: bool = True) -> Table:
    """A line per round and variant: counts, density, accuracies, early-stop step, seconds; per-layer densities."""
    numbers = sorted({row.replicates for row in rows})
    title = f"mean ± standard deviation of {' to '.join(map(str, numbers))} replicates" if numbers[-1] > 1 else None
    table = Table(title=title, title_style="dim", header_style="bold", box=None, pad_edge=False)
    with_controls = len({row.variant for row in rows}) > 1
    table.add_column("round", justify="right")
    if with_controls:
        table.add_column("variant")
    metric = "acc" if rows[0].metric == "accuracy" else rows[0].measured
    for head in ("weights left", *accuracy_heads(metric), "seconds"):
        table.add_column(head, justify="right")
    metered = any(row.energy is not None for row in rows)
    if metered:
        table.add_column("Wh", justify="right")
    names = list(rows[0].layers) if layers else []
    for name in names:
        table.add_column(f"{_short(name)} %", justify="right", style="dim")
    for row in rows:
        cells = [str(row.round)]
        if with_controls:
            cells.append(row.variant)
        cells += [
            f"{row.kept:,.0f} / {row.total:,}",
            *accuracy_cells(row),
            f"{row.seconds:.1f}",
            *(["" if row.energy is None else f"{1000 * row.energy.mean:.3g}"] if metered else []),
            *(f"{100 * row.layers[name]:.1f}" for name in names),
        ]
        table.add_row(*cells, style=None if row.variant == TICKET else "cyan")
    return table


def layer_table(rows: Sequence[Row]) -> Table:
    """Per-layer densities with a line per layer and a column per round, at most eight rounds of the ticket's."""
    shown = spread_out([row for row in rows if row.variant == TICKET])
    table = plain_table("layer", *(f"round {row.round}" for row in shown), title="density per layer, %")
    for name in shown[-1].layers:
        table.add_row(_short(name), *(f"{100 * row.layers[name]:.1f}" for row in shown))
    return table


def _short(name: str) -> str:
    return name.removesuffix(".weight")
