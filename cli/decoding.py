"""A progress bar while a folder of images is decoded for the first time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn

from lthfunc.data.images import Observe

from .bars import bar_of


@contextmanager
def decoding() -> Iterator[Observe]:
    """A function for `load` to report progress to; the bar appears with the first image."""
    progress = bar_of(
        TextColumn("decoding images"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn()
    )
    bar: TaskID | None = None

    def observe(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            progress.start()
            bar = progress.add_task("", total=total)
        progress.update(bar, completed=done)

    try:
        yield observe
    finally:
        if bar is not None:
            progress.stop()
