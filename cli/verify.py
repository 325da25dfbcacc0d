"""``lthfunc verify``: whether a run's files are undamaged and consistent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import put, put_json
from .options import Json


def verify(
    run: Annotated[str, typer.Argument(help="The run's folder.")],
    json: Json = False,
) -> None:
    """Check a run's files: checksums, shapes, nested masks, densities, zeros where weights are pruned.

    Reports what is damaged and which rounds are intact; `lthfunc resume` continues from there. Exit code 3 for damage.
    """
    from lthfunc.runs.verification import verified

    report = verified(Path(run))
    if json:
        put_json(report.as_json())
    else:
        for line in report.lines():
            put(line)
    if report.problems:
        raise typer.Exit(3)
