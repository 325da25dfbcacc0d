"""What a command prepares before it trains: a moving indicator, and how far the decoding of data is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lthfunc.data.images import Observe

from .console import busy, duration


@contextmanager
def decoding(what: str) -> Iterator[Observe]:
    """A function for `load` to report decoded examples to. what: what else is going on meanwhile."""
    with busy(what) as update:
        begun: float | None = None

        def observe(done: int, total: int) -> None:
            nonlocal begun
            now = time.monotonic()
            begun = begun or now
            left = f", {duration((now - begun) * (total - done) / done)} left" if done and total else ""
            update(f"{what}: {done:,}{f' of {total:,}' if total else ''} examples decoded{left}")

        yield observe
