"""What compiling needs on a machine, and what is missing there."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sysconfig
import tempfile
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


@functools.cache
def _why_no_host_compiler() -> str | None:
    # Inductor looks for the compiler in CXX, then g++. Its programs include Python.h, which Debian packs apart.
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), "")
    if not shutil.which(compiler):
        return f"no C++ compiler was found ({compiler or 'g++'})"
    include = sysconfig.get_paths()["include"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.cpp"
        source.write_text("#include <Python.h>\nint main() { return 0; }\n")
        command = [compiler, f"-I{include}", "-fsyntax-only", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if "Python.h" in done.stderr:
        return f"Python's header files are missing in {include}"
    return f"the C++ compiler {compiler} does not work"
