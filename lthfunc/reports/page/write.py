"""A report on disk: the page, and its figures as files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
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


def figures_of(report: Report) -> list[tuple[str, Callable[[], Figure]]]:
    """The name of each figure, and a function that draws it."""
    from lthfunc.reports.matplotlib_figures import printed  # imports matplotlib
    from lthfunc.reports.page.static_figures import mask_figure, pixel_figure, weight_figure

    found: list[tuple[str, Callable[[], Figure]]] = [
        (picture.key, partial(printed, _of(picture, report.runs)))
        for pictures in report.together.values() for picture in pictures
    ]  # fmt: skip
    for run, mine in zip(report.runs, report.each, strict=True):
        own = "" if len(report.runs) == 1 else re.sub(r"[^\w.-]+", "-", run.name) + "-"
        pictures = [picture for each in mine.pictures.values() for picture in each]
        found += [(own + picture.key, partial(printed, _of(picture, [run]))) for picture in pictures]
        if mine.masks is not None:
            found += [(f"{own}masks", partial(mask_figure, mine.masks))]
            found += [(f"{own}weights", partial(weight_figure, mine.masks))]
            if mine.pixels is not None:
                found += [(f"{own}pixels", partial(pixel_figure, *mine.pixels, mine.masks))]
    return found


def _of(picture: Picture, runs: Sequence[RunView]) -> Picture:
    """A picture with its run in the title, where there is one run."""
    return picture._replace(title=f"{picture.title}, {runs[0].title}") if len(runs) == 1 else picture


def write_figures(figures: Sequence[tuple[str, Callable[[], Figure]]], folder: Path) -> Iterator[Path]:
    """Write each figure as PNG and SVG, yielding the paths. Raises DamagedError where `folder` is a link."""
    from lthfunc.reports.matplotlib_figures import save

    safe_files.check_folder(folder.parent, folder)
    for name, draw in figures:
        figure = draw()
        for suffix in (".png", ".svg"):
            save(figure, folder / f"{name}{suffix}", folder.parent)
            yield folder / f"{name}{suffix}"
