"""Results as a rich table and as plain lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.metrics import MetricScale, metric_scale
from lthfunc.experiments.records import Row, Spread
from lthfunc.reports.spacing import spread_out

#: Of values that are shares whatever the metric.
ACCURACY = metric_scale("accuracy")


def in_short(scale: MetricScale) -> MetricScale:
    """A scale whose word fits a narrow column."""
    return scale._replace(word="acc") if scale == ACCURACY else scale


def measured(value: Spread, replicates: int, scale: MetricScale = ACCURACY) -> str:
    """A metric's value without its unit, with ± standard deviation where there are several replicates."""
    text = scale.number(value.mean)
    return f"{text} ± {scale.number(value.std)}" if replicates > 1 else text


def with_unit(value: Spread, replicates: int, scale: MetricScale) -> str:
    """`measured`, with its unit."""
    return f"{measured(value, replicates, scale)} {scale.unit}".rstrip()


def steps(value: Spread, replicates: int) -> str:
    """A step number, with ± standard deviation where there are several replicates."""
    return f"{value.mean:,.0f} ± {value.std:,.0f}" if replicates > 1 else f"{value.mean:,.0f}"


class _PlainTable(Table):
    """A table without lines; on a screen too narrow for it, its rows are columns, in blocks one below the other.

    heading: above it, which may be wider.
    """

    heading = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.heading:
            yield Text(self.heading, "dim")
        head, *rows = zip(*([str(each.header), *map(str, each.cells)] for each in self.columns), strict=True)
        if sum(max(map(cell_len, cells)) + 2 for cells in zip(head, *rows, strict=True)) - 2 <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        names = max(map(cell_len, head))
        while rows:
            room = options.max_width - names
            count = 0
            while count < len(rows) and (room := room - 2 - max(map(cell_len, rows[count]))) >= 0:
                count += 1
            block, rows = rows[: max(1, count)], rows[max(1, count) :]
            table = plain_table(head[0], *(row[0] for row in block))
            for line in list(zip(head, *block, strict=True))[1:]:
                table.add_row(*line)
            yield from Table.__rich_console__(table, console, options)
            if rows:
                yield Text()


def plain_table(*heads: str, left: int = 1, title: str | None = None) -> Table:
    """An empty table without lines: the first `left` columns flush left, the others flush right."""
    table = _PlainTable(header_style="bold", box=None, pad_edge=False)
    table.heading = title or ""
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < left else "right")
    return table


def accuracy_heads(scale: MetricScale) -> tuple[str, ...]:
    """Heads of `accuracy_cells`."""
    return "density %", f"val {scale.head}", f"test {scale.head}", "early stop"


def accuracy_cells(row: Row) -> list[str]:
    """A row's density, accuracies and early-stopping step."""
    accuracies = (measured(each, row.replicates, row.scale) for each in (row.val_accuracy, row.test_accuracy))
    return [f"{100 * row.density:.2f}", *accuracies, steps(row.early_stop_step, row.replicates)]


class _Column(NamedTuple):
    """A column of a table. cells: one per row. side: where they are aligned."""

    head: str
    cells: list[str]
    side: Literal["left", "right"] = "right"
    style: str = ""

    @property
    def width(self) -> int:
        """Of its widest cell."""
        return max(map(cell_len, (self.head, *self.cells)))


def result_table(rows: Sequence[Row], width: int | None = None) -> Table:
    """A line per round and variant: counts, density, accuracies, early-stop step, seconds, per-layer densities.

    width: of the screen [columns], into which the table is fitted by leaving out what matters least. None: all of it.
    """
    columns, replicates = _result_columns(rows), sorted({row.replicates for row in rows})
    several = replicates[-1] > 1
    for name, shorter in (
        ("layers", None),
        ("left", [f"{row.kept:,.0f}" for row in rows]),
        ("stop", [steps(row.early_stop_step, 1) for row in rows]),
        ("seconds", None),
        ("left", None),
        ("stop", None),
        ("energy", None),
    ):
        if width is None or _width(columns) <= width:
            break
        mine = [key for key in columns if key.partition(":")[0] == name]
        columns |= {key: columns[key]._replace(cells=shorter) for key in mine if shorter is not None}
        columns = {key: each for key, each in columns.items() if shorter is not None or key not in mine}
    counts = f"{replicates[0]} to {replicates[-1]}" if replicates[1:] else replicates[0]
    title = f"mean ± standard deviation of {counts} replicates" if several else None
    table = Table(title=title, title_style="dim", title_justify="left", header_style="bold", box=None, pad_edge=False)
    for each in columns.values():
        table.add_column(each.head, justify=each.side, style=each.style, no_wrap=True)
    for row, *cells in zip(rows, *(each.cells for each in columns.values()), strict=True):
        table.add_row(*cells, style=None if row.variant == TICKET else "cyan")
    return table


def _result_columns(rows: Sequence[Row]) -> dict[str, _Column]:
    accuracies = zip(accuracy_heads(in_short(rows[0].scale)), zip(*map(accuracy_cells, rows), strict=True), strict=True)
    density, val, test, stop = (_Column(head, list(cells)) for head, cells in accuracies)
    columns = {
        "round": _Column("round", [str(row.round) for row in rows]),
        "variant": _Column("variant", [row.variant for row in rows], "left"),
        "left": _Column("weights left", [f"{row.kept:,.0f} / {row.total:,}" for row in rows]),
        "density": density, "val": val, "test": test, "stop": stop,
        "seconds": _Column("seconds", [f"{row.seconds:.1f}" for row in rows]),
        "energy": _Column("Wh", ["" if row.energy is None else f"{1000 * row.energy.mean:.3g}" for row in rows]),
        **{
            f"layers:{name}": _Column(
                f"{_short(name)} %", [f"{100 * row.layers[name]:.1f}" for row in rows], style="dim"
            )
            for name in rows[0].layers
        },
    }  # fmt: skip
    if len({row.variant for row in rows}) == 1:
        del columns["variant"]
    if all(row.energy is None for row in rows):
        del columns["energy"]
    return columns


def _width(columns: Mapping[str, _Column]) -> int:
    """Of a table without lines."""
    return sum(each.width + 2 for each in columns.values()) - 2


def has_layers(rows: Sequence[Row], width: int) -> bool:
    """Whether `result_table` has the densities of layers at this width."""
    return _width(_result_columns(rows)) <= width


def layer_table(rows: Sequence[Row], width: int) -> Table:
    """Per-layer densities with a line per layer and a column per round of the ticket: as many as fit into the width."""
    tickets = [row for row in rows if row.variant == TICKET]
    room = width - max(len(_short(name)) for name in tickets[0].layers)
    shown = spread_out(tickets, max(2, room // len(f"  round {tickets[-1].round}")))
    table = plain_table("layer", *(f"round {row.round}" for row in shown), title="density per layer, %")
    for name in shown[-1].layers:
        table.add_row(_short(name), *(f"{100 * row.layers[name]:.1f}" for row in shown))
    return table


def _short(name: str) -> str:
    return name.removesuffix(".weight")
