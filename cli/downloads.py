"""What every command shows while something is downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from lthfunc.downloads import DOWNLOADS

from .console import aside, busy, say


@contextmanager
def downloads_shown() -> Iterator[None]:
    """Meanwhile, say what is downloaded in this process: moving on a terminal, otherwise in one line."""
    with ExitStack() as stack:

        def show(text: str) -> None:
            if not text:
                stack.close()
            elif aside().is_terminal:
                stack.enter_context(busy(text))
            else:
                say(text)

        with DOWNLOADS.watched(show):
            yield
