"""``lthfunc compare``: runs beside each other, and whether they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import UserError, invalid

from . import options as o
from .console import put


def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN…", help="Folders of runs.")],
    at: Annotated[
        str,
        typer.Option(
            "--at",
            metavar="POINT",
            help="Where: winning (the winning ticket, or else the last round), last, dense, or a density, for the "
            "round nearest to it.",
            autocompletion=o.names("winning", "last", "dense"),
        ),
    ] = "winning",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", metavar="RUN", help="The run that the others are tested against. \\[default: the first]"
        ),
    ] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object, for machines.")] = False,
) -> None:
    """Compare runs: means, deviations, and a paired t-test against a baseline over the seeds that both have."""
    if csv + markdown + json > 1:
        raise UserError("--csv, --markdown and --json: give one of them")
    folders = [Path(run) for run in runs]
    reference = Path(baseline) if baseline is not None else folders[0]
    if reference not in folders:
        folders.append(reference)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise invalid("RUN", ", ".join(map(str, folders)), "each run once")
    from lthfunc.reports.run_comparison import (
        ComparedRun,
        as_csv,
        as_markdown,
        as_values,
        compared,
        comparison_table,
    )
    from lthfunc.runs.folder import distinct_names, whole_run

    from .console import printable, screen

    read = [whole_run(folder) for folder in folders]
    subjects = [
        ComparedRun(printable(name), run.config, run.records)
        for name, run in zip(distinct_names(folders), read, strict=True)
    ]
    rows = compared(subjects, at, folders.index(reference))
    tested = subjects[folders.index(reference)].name
    if json:
        import json as writer

        print(writer.dumps({"at": at, "baseline": tested, "runs": as_values(rows)}, indent=2))
    elif csv:
        put(as_csv(rows), end="")
    elif markdown:
        put(as_markdown(rows))
    else:
        screen().print(comparison_table(rows, tested))
