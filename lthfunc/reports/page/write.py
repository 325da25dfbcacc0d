"""A report on disk: the page, and its figures as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lthfunc.reports.charts import Picture
from lthfunc.reports.page.document import page
from lthfunc.reports.page.pictures import RunPictures, pictures_of, together
from lthfunc.reports.page.run_view import RunView
from lthfunc.runs import safe_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Report(NamedTuple):
    """Runs, the pictures of all together by heading, and those of each."""

    runs: list[RunView]
    together: dict[str, list[Picture]]
    each: list[RunPictures]


def report_of(runs: Sequence[RunView], on_read: Callable[[], None]) -> Report:
    """Read what the page shows. on_read: called after each round is read."""
    each = [pictures_of(run, on_read) for run in runs]
    known = [
        run._replace(missing=[*run.missing, *(line for line in mine.missing if line not in run.missing)])
        for run, mine in zip(runs, each, strict=True)
    ]
    return Report(known, together(runs), each)


def write_page(report: Report, path: Path, title: str) -> None:
    """Write the page, whole or not at all."""
    text = page(report.runs, report.together, report.each, title)
    safe_files.write(path.parent, path, text.encode(errors="backslashreplace"))  # paths may not be UTF-8


def write_figures(report: Report, folder: Path) -> Iterator[Path]:
    """Write every figure as PNG and SVG, yielding the paths. Raises DamagedError where `folder` is a link."""
    from lthfunc.reports.matplotlib_figures import save  # imports matplotlib

    safe_files.check_folder(folder.parent, folder)
    for name, figure in _figures(report):
        for suffix in (".png", ".svg"):
            save(figure, folder / f"{name}{suffix}", folder.parent)
            yield folder / f"{name}{suffix}"


def number_of_figures(report: Report) -> int:
    """How many files `write_figures` writes."""
    pictures = [*report.together.values(), *(own for each in report.each for own in each.pictures.values())]
    return 2 * (sum(map(len, pictures)) + sum(len(each.stills) for each in report.each))


def _figures(report: Report) -> Iterator[tuple[str, Figure]]:
    from lthfunc.reports.matplotlib_figures import printed

    for pictures in report.together.values():
        for picture in pictures:
            yield picture.key, printed(picture)
    for run, mine in zip(report.runs, report.each, strict=True):
        own = "" if len(report.runs) == 1 else re.sub(r"[^\w.-]+", "-", run.name) + "-"
        for pictures in mine.pictures.values():
            for picture in pictures:
                yield f"{own}{picture.key}", printed(picture)
        for name, still in mine.stills.items():
            yield f"{own}{name}", still()
