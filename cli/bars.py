"""A progress bar for long work: only on a terminal, and removed once the work is done."""

from __future__ import annotations

from rich.progress import Progress, ProgressColumn

from .console import aside


class _Bar(Progress):
    def stop(self) -> None:
        if not self.disable:  # older versions of rich still print an empty line
            super().stop()


def bar_of(*columns: ProgressColumn) -> Progress:
    """A bar on stderr made of these columns; nothing is shown if stderr is not a terminal."""
    console = aside()
    return _Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
