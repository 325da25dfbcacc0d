"""How often Python looks for garbage in a process that imports PyTorch."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def rare_collection() -> Iterator[None]:
    """Search long-lived objects for garbage rarely: nearly all of them are PyTorch's, and looking took 0.7 s a command.

    A step's garbage is young, and is found as usual. When the process ends, Python would search everything several
    times, which takes another 1.2 s; freezing all objects avoids that where nobody complains.
    """
    before = gc.get_threshold()
    atexit.register(_freeze)
    gc.set_threshold(*before[:2], 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _freeze() -> None:
    # Triton from 3.9 on is made with nanobind, which lists on stderr what is left of it as the process ends.
    builder = getattr(getattr(sys.modules.get("triton._C.libtriton"), "ir", None), "builder", None)
    if type(builder).__module__ != "nanobind":
        gc.freeze()
