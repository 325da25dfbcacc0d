"""``lthfunc report``: runs as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lthfunc.errors import DamagedError, UserError, invalid

from . import options as o
from .console import busy, put, say


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Run folders, finished or not.")],
    out: Annotated[
        str | None,
        o.option("--out", "The page. \\[default: report.html in the run's folder; here for several runs]", "FILE"),
    ] = None,
    title: Annotated[str | None, o.option("--title", "The page's heading.", "TEXT")] = None,
    figures: Annotated[
        bool,
        o.option("--figures/--no-figures", "Also write every figure as PNG and SVG to FILE-figures/."),
    ] = True,
) -> None:
    """Write a report of runs: one HTML page that opens offline, and its figures as PNG and SVG beside it."""
    folders = [Path(run) for run in runs]
    path = Path(out) if out else folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    if path.suffix not in (".html", ".htm"):
        raise invalid("--out", out, "a name that ends in .html")
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    with busy("loading PyTorch"):
        from lthfunc.reports.page.pictures import reads_of
        from lthfunc.reports.page.run_view import run_views
        from lthfunc.reports.page.write import figures_of, report_of, write_figures, write_page

    from .bars import bar_of

    found = run_views(folders)
    if not any(run.records for run in found):
        damaged = [run for run in found if run.config is None]
        if damaged:
            raise DamagedError(f"{damaged[0].folder}: {damaged[0].missing[0]}")
        raise UserError(f"{', '.join(runs)}: nothing to report, since no training has finished yet")
    if not path.parent.is_dir():
        raise invalid("--out", str(path), f"a file in an existing folder, which {str(path.parent)!r} is not")
    subjects = ", ".join(dict.fromkeys(run.title for run in found))
    heading = title or (subjects if len(found) == 1 else f"{len(found)} runs: {subjects}")
    place = path.with_name(f"{path.stem}-figures")
    with bar_of(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task("reading masks and weights", total=sum(map(reads_of, found)))
        made = report_of(found, lambda: bar.advance(task))
        write_page(made, path, heading)
        drawn = figures_of(made) if figures else []
        if drawn:
            task = bar.add_task("drawing figures", total=2 * len(drawn))
            for _ in write_figures(drawn, place):
                bar.advance(task)
    for run in made.runs:
        for line in run.missing:
            say(f"missing   {run.name}: {line}")
    put(f"page      {path}")
    if drawn:
        put(f"figures   {place} ({2 * len(drawn)} files)")
        if made.together:
            put(f"slide     {place / 'accuracy_vs_density.png'} (also .svg)")
