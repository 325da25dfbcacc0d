"""``lthfunc compare``: runs side by side, and whether they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError

from . import options as o
from .console import printable, put, put_json, say, screen


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders.")],
    at: Annotated[
        str,
        o.option(
            "--at",
            "Round to compare: winning (the last round where no ticket won), last, dense, or the round nearest to a "
            "density, such as 0.33.",
            "POINT",
            autocompletion=o.names("winning", "last", "dense"),
        ),
    ] = "winning",
    baseline: Annotated[
        str | None, o.option("--baseline", "Run to test the others against. \\[default: the first]", "RUN")
    ] = None,
    csv: Annotated[bool, o.option("--csv", "Print comma-separated values.")] = False,
    markdown: Annotated[bool, o.option("--markdown", "Print a Markdown table.")] = False,
    json: o.Json = False,
) -> None:
    """Compare runs: means, standard deviations, and a paired t-test against a baseline over shared seeds."""
    if csv + markdown + json > 1:
        raise UserError("--csv, --markdown and --json: give only one of them")
    folders = [Path(run) for run in runs]
    reference = Path(baseline) if baseline is not None else folders[0]
    if reference not in folders:
        folders.append(reference)
    from lthfunc.reports.run_comparison import (
        ComparedRun,
        as_csv,
        as_markdown,
        as_values,
        compared,
        comparison_table,
        comparison_warnings,
    )
    from lthfunc.runs.folder import whole_run
    from lthfunc.runs.names_of_runs import distinct_names

    names = distinct_names(folders)
    read = [whole_run(folder) for folder in folders]
    subjects = [
        ComparedRun(printable(name), run.config, run.records, run.choice.winning_round)
        for name, run in zip(names, read, strict=True)
    ]
    rows = compared(subjects, at, folders.index(reference))
    tested = subjects[folders.index(reference)].name
    for line in comparison_warnings(subjects, rows):
        say(line)
    if json:
        put_json({"at": at, "baseline": tested, "runs": as_values(rows)})
    elif csv:
        put(as_csv(rows), end="")
    elif markdown:
        put(as_markdown(rows))
    else:
        screen().print(comparison_table(rows, tested))
