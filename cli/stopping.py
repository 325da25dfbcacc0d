"""Requests to stop (Ctrl-C, a cluster's SIGTERM): the first takes effect after the current step, a second at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What users read once they have asked to stop.
STOPPING = "stopping after this step; press Ctrl-C again to stop at once"


class Stop:
    """Whether a stop was requested; calling it returns this. number: of the signal."""

    number: int | None = None

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.number is not None

    @property
    def code(self) -> int:
        """The exit code of a process that stops because of it."""
        return 128 + (self.number or signal.SIGINT)


@contextmanager
def stopping(*, aloud: bool = True) -> Iterator[Stop]:
    """Turn signals into requests to stop, which the result returns; a second signal raises KeyboardInterrupt."""
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop():
            raise KeyboardInterrupt
        stop.number = number
        if aloud:
            os.write(2, f"\n{STOPPING}\n".encode())

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
