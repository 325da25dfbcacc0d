"""Requests to stop (Ctrl-C, a cluster's SIGTERM): the first is granted after the step under way, a second at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """Whether a stop was asked for; called, it says so. number: of the signal."""

    number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number is not None

    @property
    def code(self) -> int:
        """The exit code of a process that stops for it."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def stopping(*, aloud: bool = True) -> Iterator[Stop]:
    """Stops are asked of whoever calls the result; a second one raises KeyboardInterrupt."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop():
            raise KeyboardInterrupt
        stop.number = number
        if aloud:
            os.write(2, b"\nstopping after this step; once more to stop at once\n")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
