"""The results that commands print at the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Row, Spread, winning
from lthfunc.reports.tables import layer_table, result_table
from lthfunc.runs import safe_files
from lthfunc.runs.ticket_files import LAST, OLD_TICKET, WINNING, WINNING_TRAINED

from .console import put, screen
from .remote_runs import named

#: Width that the result table needs for per-layer densities; narrower screens get a second table.
_WIDE = 100
_FEW_LAYERS = 5


def show_tables(rows: Sequence[Row]) -> None:
    """Print the result table, with per-layer densities in it or below it."""
    console = screen()
    together = len(rows[0].layers) <= _FEW_LAYERS and console.width >= _WIDE
    console.print(result_table(rows, layers=together))
    if not together:
        console.print()
        console.print(layer_table(rows))


def show_results(rows: Sequence[Row], folder: Path, pictures: Sequence[Path], *, ticket: bool) -> None:
    """Print tables, the winning ticket, and the paths of the files."""
    put()
    show_tables(rows)
    put()
    if ticket:
        screen().print(verdict(rows), highlight=False)
        if warning := collapse(rows):
            screen().print(warning, highlight=False)
        for line in outcome_lines(rows, folder):
            put(line)
    for picture in pictures:
        put(f"picture         {named(picture)}")
    put(f"run folder      {named(folder)}")


def outcome_lines(rows: Sequence[Row], folder: Path) -> list[str]:
    """A line per file of a finished run, with the network that it has."""
    best, last = winning(rows), max(row.round for row in rows)
    files = [("last round    ", LAST, last, "after")]
    if best is not None:
        files[:0] = [
            ("winning ticket", WINNING, best.round, "before"),
            ("trained       ", WINNING_TRAINED, best.round, "after"),
        ]
    there = {name for _, name, _, _ in files if safe_files.status(folder, folder / name) is not None}
    lines = [
        f"{what}  {named(folder / name)}  (round {number}, weights {when} training)"
        for what, name, number, when in files
        if name in there
    ]
    if safe_files.status(folder, folder / OLD_TICKET) is not None:
        lines.append(f"old ticket      {named(folder / OLD_TICKET)}  (round {last}, weights before training)")
    if rows[0].replicates > 1 and lines:
        lines.append(f"all seeds       {named(folder)}/seed*/  (the files above are the first seed's)")
    if missing := [what.strip() for what, name, _, _ in files if name not in there]:
        lines.append(f"not written     {', '.join(missing)}; lthfunc resume {named(folder)} writes them")
    return lines


def verdict(rows: Sequence[Row]) -> str:
    """A sentence on the winning ticket, by validation accuracy."""
    best = winning(rows)
    if best is None:
        return f"No pruned round reached the dense network's validation {rows[0].measured}."
    return (
        f"Winning ticket: round {best.round}, {100 * best.density:.1f} % of the weights, is the sparsest whose "
        f"validation {best.measured} ({100 * best.val_accuracy.mean:.2f} %) is not below the dense network's "
        f"({100 * rows[0].val_accuracy.mean:.2f} %)."
    )


def collapse(rows: Sequence[Row]) -> str | None:
    """A warning if a round emptied a layer, through which no signal passes."""
    for row in rows:
        empty = [name for name, density in row.layers.items() if density == 0]
        if row.variant == TICKET and empty:
            return (
                f"Layer collapse: from round {row.round} on no weights remain in {', '.join(empty)}; "
                "--min-layer-weights N keeps some weights in every layer."
            )
    return None


def as_json(folder: Path, config: Config, rows: Sequence[Row]) -> dict[str, Any]:
    """The results as plain values. Accuracies are in [0, 1]."""
    best = winning(rows)
    return {
        "run": named(folder),
        "config": to_mapping(config),
        "rounds": [_row(row) for row in rows],
        "winning_round": best.round if best else None,
        "last_round": max((row.round for row in rows), default=None),
    }


def _row(row: Row) -> dict[str, Any]:
    """A row as plain values, without what was not measured."""
    plain = {name: value._asdict() if isinstance(value, Spread) else value for name, value in row._asdict().items()}
    return {name: value for name, value in plain.items() if value is not None}
