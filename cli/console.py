"""Where tables and lines are printed."""

from __future__ import annotations

import sys

from rich.console import Console


def screen() -> Console:
    """stdout; a file or a pipe is taken to be wide, since nothing there needs wrapping."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=200, markup=False)


def aside() -> Console:
    """stderr, for progress and notes. Text that comes from names and files is text here, never markup."""
    return Console(stderr=True, markup=False)


def printable(text: str) -> str:
    """Text out of files and names, without what a terminal would obey."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def say(text: str) -> None:
    """A note, at once."""
    print(printable(text), file=sys.stderr, flush=True)
