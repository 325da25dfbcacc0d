"""Where tables and lines are printed: the one way to the screen, so that no text is obeyed by a terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from lthfunc.printable import printable

__all__ = ["aside", "printable", "put", "say", "screen", "warning_in_words"]


class _Plain(Console):
    """A console that draws texts as they are; what it says to the terminal itself comes from styles alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments of what is drawn, with nothing in their text that a terminal would obey."""
        for segment in super().render(renderable, options):
            text = segment.text
            yield segment if segment.control or text.isprintable() else segment._replace(text=printable(text))


def screen() -> Console:
    """stdout; a file or a pipe is taken to be wide, since nothing there needs wrapping."""
    console = _Plain(markup=False)
    return console if console.is_terminal else _Plain(width=200, markup=False)


def aside() -> Console:
    """stderr, for progress and notes. Text that comes from names and files is text here, never markup."""
    return _Plain(stderr=True, markup=False)


def put(text: object = "", end: str = "\n") -> None:
    """A line on stdout."""
    print(printable(str(text)), end=end)


def say(text: str) -> None:
    """A note, at once."""
    print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def warning_in_words() -> Iterator[None]:
    """What libraries warn of is printed as text too: it may hold names out of files."""

    def show(
        message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        ours = category.__module__.startswith("lthfunc.")
        say(str(message) if ours else warnings.formatwarning(message, category, filename, lineno, line).rstrip("\n"))

    before, warnings.showwarning = warnings.showwarning, show
    try:
        yield
    finally:
        warnings.showwarning = before
