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

    with _handling(ask):
        yield stop


@contextmanager
def terminable() -> Iterator[Stop]:
    """For work that keeps nothing under way: both signals raise KeyboardInterrupt; the result knows the exit code."""
    stop = Stop()

    def end(number: int, frame: FrameType | None) -> None:
        stop.number = number
        raise KeyboardInterrupt

    with _handling(end):
        yield stop


@contextmanager
def _handling(handle: object) -> Iterator[None]:
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
