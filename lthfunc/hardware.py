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


def user_cache() -> Path:
    """This library's folder in the user's cache: in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lthfunc"


def cache_home() -> Path:
    """Where what is made for this machine is kept: $LTHFUNC_CACHE, or the user's cache."""
    return Path(os.environ.get("LTHFUNC_CACHE") or user_cache()).expanduser()
