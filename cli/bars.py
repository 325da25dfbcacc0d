"""A bar beside long work: on a terminal alone, and gone once the work is done."""

from __future__ import annotations

from rich.progress import Progress, ProgressColumn

from .console import aside


class _Bar(Progress):
    def stop(self) -> None:
        if not self.disable:  # older versions of rich print an empty line all the same
            super().stop()


def bar_of(*columns: ProgressColumn) -> Progress:
    """A bar on stderr made of these columns; where that is no terminal nothing of it is shown."""
    console = aside()
    return _Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
