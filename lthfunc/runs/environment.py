"""What a run's numbers depend on besides its settings, and which processes worked on it."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import lthfunc
from lthfunc.distributed.collectives import current_collectives
from lthfunc.hardware import processor_name

#: Packages whose versions are recorded.
_PACKAGES = ("torch", "torchvision", "numpy", "safetensors", "optree", "pydantic")
#: What must be the same everywhere for the same bits.
_SAME = ("lthfunc", "lthfunc_source", "torch", "python")


def machine(device: str, threads: int | None = None) -> dict[str, Any]:
    """What a run's numbers depend on besides its settings. threads: of a training, if not the current number."""
    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else None
    return {
        "lthfunc": lthfunc.__version__,
        "lthfunc_source": source_digest(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "threads": threads or torch.get_num_threads(),
        "gpu": gpu,
    }


def versions() -> dict[str, Any]:
    """The versions that must be the same everywhere for the same bits."""
    return {name: value for name, value in machine("cpu").items() if name in _SAME}


@functools.cache
def source_digest() -> str:
    """Twelve hexadecimal digits of the library's own files: two trees with one version number have different ones.

    It is of the files as they are when this is first called.
    """
    digest, folder = hashlib.sha256(), Path(lthfunc.__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".cpp", ".h", ".def"):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def machine_in_words(about: Mapping[str, Any]) -> tuple[str, str]:
    """(hardware, versions) in words, from the result of `machine`."""
    threads = about["threads"]
    where = about["gpu"] or f"{about['processor']}, {threads} thread{'' if threads == 1 else 's'}"
    source = f" (source {about['lthfunc_source']})" if about.get("lthfunc_source") else ""
    return where, f"torch {about['torch']}, Python {about['python']}, lthfunc {about['lthfunc']}{source}"


def environment(event: str, device: str, threads: int | None) -> dict[str, Any]:
    """A process that starts to work on a run: time, machine, command line, git state of the user's code."""
    return {
        "event": event,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "ranks": current_collectives().world_size,
        "machine": machine(device, threads),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """The commit of the working directory and whether its files differ from it; None outside a repository."""
    commit, status = (_said("rev-parse", "HEAD"), _said("status", "--porcelain", "--untracked-files=no"))
    return None if commit is None else {"commit": commit, "changed": bool(status)}


def _said(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
