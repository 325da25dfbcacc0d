"""All output to the terminal, which never interprets control characters in names or files."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from lthfunc.printable import printable

__all__ = [
    "aside", "busy", "duration", "printable", "put", "put_json", "put_parts", "put_words", "say", "screen",
    "warning_in_words",
]  # fmt: skip


#: Functions that change the moving indicators shown now, the innermost last.
_INDICATORS: list[Callable[[str], None]] = []


class _Plain(Console):
    """A console that prints text literally; only styles produce control sequences."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command, which ends with a code of its own; rich would exit here."""
        raise

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments to print, with control characters in their text escaped."""
        for segment in super().render(renderable, options):
            text = segment.text
            yield segment if segment.control or text.isprintable() else segment._replace(text=printable(text))


def screen() -> Console:
    """stdout; files and pipes count as 200 columns wide, so that nothing is wrapped."""
    console = _Plain(markup=False, emoji=False)
    return console if console.is_terminal else _Plain(width=200, markup=False, emoji=False)


def page() -> Console:
    """stdout for help, as wide as the terminal or `COLUMNS` says, also in files and pipes."""
    return _Plain(markup=False, emoji=False, highlight=False)


def aside() -> Console:
    """stderr, for progress and notes, without markup; also where a library is kept from writing there meanwhile."""
    return _Plain(file=sys.stderr, stderr=True, markup=False, emoji=False)


def put(text: object = "", end: str = "\n") -> None:
    """Print a line on stdout."""
    print(printable(str(text)), end=end)


def put_words(text: str, style: str = "", indent: int = 0, console: Console | None = None) -> None:
    """Print a sentence, wrapped at words on a terminal. console: instead of stdout."""
    console = console or screen()
    if console.is_terminal:
        console.print(Padding(Text(text, style), (0, 0, 0, indent)))
    else:
        console.print(" " * indent + text, soft_wrap=True, highlight=False)


def put_parts(*parts: RenderableType) -> None:
    """Print tables and sentences, one below the other; as `put_words`, a pipe gets each sentence as one line."""
    for part in parts:
        if isinstance(part, str):
            put_words(part)
        else:
            screen().print(part, highlight=False)


def put_json(value: Any) -> None:
    """Print plain values on stdout as JSON, for machines."""
    print(json.dumps(value, indent=2))


def say(text: str) -> None:
    """Print a note on stderr at once, on a terminal wrapped at words."""
    if sys.stderr.isatty():
        put_words(text, console=aside())
    else:
        print(printable(text), file=sys.stderr, flush=True)


@contextmanager
def busy(what: str) -> Iterator[Callable[[str], None]]:
    """On a terminal, a moving indicator and what is going on, until this context ends; yields a function to change it.

    For work that can't be counted, and that waits for no answer of the user. Within another one, or within a live
    display, it changes the line that moves already.
    """
    console = aside()
    if not console.is_terminal:
        yield lambda what: None
    elif _INDICATORS:
        outer = _INDICATORS[-1]
        outer(what)
        try:
            yield outer
        finally:
            outer("")
    else:
        with console.status(Text(what)) as status, indicating(lambda text: status.update(Text(text or what))):
            yield _INDICATORS[-1]


@contextmanager
def indicating(update: Callable[[str], None]) -> Iterator[None]:
    """Let a display that is drawn meanwhile show what is going on. update: called with it; empty: nothing else."""
    _INDICATORS.append(update)
    try:
        yield
    finally:
        _INDICATORS.remove(update)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:23", "2:01:23"."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def warning_in_words() -> Iterator[None]:
    """Print warnings literally, too; those of libraries may contain names from files."""

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
