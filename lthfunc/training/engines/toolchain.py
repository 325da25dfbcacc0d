"""What compiling needs on a machine, and what is missing there."""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from pathlib import Path

import torch


def why_not(device: torch.device | str) -> str | None:
    """Why nothing can be compiled for this device, in one line; None where it can."""
    if torch.device(device).type == "cuda":
        try:
            import triton  # noqa: F401
        except ImportError:
            return "triton is not installed"
    return _why_no_host_compiler()


def host_compiler() -> str:
    """The C++ compiler that is used: of CXX, else the first that is found, else nothing."""
    return os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), "")


def why_no_compiler() -> str | None:
    """Why no C++ can be compiled, in one line; None where it can."""
    compiler = host_compiler()
    return None if shutil.which(compiler) else f"no C++ compiler was found ({compiler or 'g++'})"


@functools.cache
def _why_no_host_compiler() -> str | None:
    # Inductor looks for the compiler in CXX, then g++. Its programs include Python.h, which Debian packs apart.
    if reason := why_no_compiler():
        return reason
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        return f"Python's header files are missing in {include}"
    return None
