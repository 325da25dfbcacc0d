"""The machine's processor, and where what is made for it is kept."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor_name() -> str:
    """The processor's model, as its maker calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_home() -> Path:
    """The user's cache of this library: $LTHFUNC_CACHE, or in $XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("LTHFUNC_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lthfunc"
    return Path(home).expanduser()
