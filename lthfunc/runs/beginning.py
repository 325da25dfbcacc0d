"""How a process begins, before it imports PyTorch."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def long_lived() -> Iterator[None]:
    """What lives long is not searched for garbage: all of it is what PyTorch imports, which took 0.7 s of a command.

    What a step leaves is young, and found as ever. As the process ends Python would search everything several times,
    another 1.2 s; then nothing is searched any more.
    """
    before = gc.get_threshold()
    atexit.register(gc.freeze)
    gc.set_threshold(*before[:2], 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def begin(*given: Any) -> None:
    """A worker's process. given: what `processes.work` takes."""
    with long_lived():
        from lthfunc.runs.processes import work

        work(*given)
