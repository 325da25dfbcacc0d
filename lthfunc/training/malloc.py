"""Memory that a step frees stays with the process, for the next step."""

from __future__ import annotations

import ctypes
import sys

# Parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
#: Bytes of a block that glibc always maps anew, by default.
_MAPPED_ANEW = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step, instead of returning it to the system.

    By default glibc maps every block above 32 MB (at first 128 kB) anew, and each step pays for clearing its pages.
    This concerns the whole process, which then keeps as much memory as it ever used; so programs call it, not the
    library. Returns whether it could be set.

    >>> lf.keep_freed_memory() in (True, False)
    True
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    largest = 2**31 - 1
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, largest), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)


def return_freed_memory(numbers: int) -> None:
    """Let the C library return to the system what is free now; what is freed later is kept as before.

    numbers: of float32 that were freed and aren't needed again soon. It takes a tenth of a second for a gigabyte, so
    nothing happens where glibc by itself would not map them anew.
    """
    if 4 * numbers >= _MAPPED_ANEW and sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
        if trim is not None:
            trim(0)
