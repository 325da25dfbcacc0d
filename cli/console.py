"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console


def screen() -> Console:
    """stdout; a file or a pipe is taken to be wide, since nothing there needs wrapping."""
    console = Console()
    return console if console.is_terminal else Console(width=200)
