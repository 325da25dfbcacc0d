"""A report on disk: the page, and its figures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lthfunc.reports.charts import Picture
from lthfunc.reports.figures import save
from lthfunc.reports.page.document import page
from lthfunc.reports.page.pictures import Drawn, drawn, together
from lthfunc.reports.page.shown import Shown
from lthfunc.reports.printed import printed
from lthfunc.trees.writing import write_atomically


def write_report(
    runs: Sequence[Shown], path: Path, title: str, figures: Path | None, told: Callable[[], None]
) -> list[Path]:
    """Write the page, and with a folder for figures a PNG and an SVG of each; returns their paths, the page first.

    told: called after each round that was read.
    """
    shared = together(runs)
    each = [drawn(run, told) for run in runs]
    known = [
        run._replace(missing=[*run.missing, *(line for line in mine.missing if line not in run.missing)])
        for run, mine in zip(runs, each, strict=True)
    ]
    write_atomically(path, page(known, shared, each, title).encode())
    if figures is None:
        return [path]
    written = [path]
    for name, figure in _figures(runs, shared, each):
        for suffix in (".png", ".svg"):
            save(figure, figures / f"{name}{suffix}")
            written.append(figures / f"{name}{suffix}")
    return written


def _figures(
    runs: Sequence[Shown], shared: Mapping[str, Sequence[Picture]], each: Sequence[Drawn]
) -> Iterator[tuple[str, Figure]]:
    for pictures in shared.values():
        for picture in pictures:
            yield picture.key, printed(picture)
    for run, mine in zip(runs, each, strict=True):
        own = "" if len(runs) == 1 else re.sub(r"[^\w.-]+", "-", run.name) + "-"
        for pictures in mine.pictures.values():
            for picture in pictures:
                yield f"{own}{picture.key}", printed(picture)
        for name, still in mine.stills.items():
            yield f"{own}{name}", still
