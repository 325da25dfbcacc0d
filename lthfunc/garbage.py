"""How often Python looks for garbage in a process that imports PyTorch."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rare_collection() -> Iterator[None]:
    """Search long-lived objects for garbage rarely: nearly all of them are PyTorch's, and looking took 0.7 s a command.

    A step's garbage is young, and is found as usual. When the process ends, Python would search everything several
    times, which takes another 1.2 s; freezing all objects avoids that.
    """
    before = gc.get_threshold()
    atexit.register(gc.freeze)
    gc.set_threshold(*before[:2], 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
