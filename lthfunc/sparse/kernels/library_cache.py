"""The library of kernels as it is kept: loaded where it is what was built, by whom one may believe.

``lthfunc_kernels.so.sha256`` says what was built. A library that was cut off would end the process as it is loaded,
with no word of why; another user's is code of theirs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from lthfunc.errors import UserError
from lthfunc.trees.atomic_io import write_atomically

NAME = "lthfunc_kernels"
#: What to do where the folder won't do.
_ELSEWHERE = "LTHFUNC_CACHE names another folder"


def library(folder: Path) -> Path:
    """Where it lies."""
    return folder / f"{NAME}.so"


def is_whole(folder: Path) -> bool:
    """Whether the library is what was built. Raises UserError where it is another user's."""
    path = library(folder)
    try:
        known = _sum_file(folder).read_text(encoding="ascii", errors="replace").strip()
        _check_owner(path)
        return hashlib.sha256(path.read_bytes()).hexdigest() == known
    except OSError:
        return False


def keep(folder: Path) -> None:
    """Say that what lies there now was built."""
    write_atomically(_sum_file(folder), (hashlib.sha256(library(folder).read_bytes()).hexdigest() + "\n").encode())


def why_not_kept(folder: Path) -> str | None:
    """Why nothing can be built into a folder; None where it can, or something has been."""
    if library(folder).exists():
        return None
    there = folder
    while not there.exists():
        there = there.parent
    return None if there.is_dir() and os.access(there, os.W_OK) else f"{there} cannot be written to ({_ELSEWHERE})"


@contextmanager
def building(folder: Path) -> Iterator[None]:
    """Alone with the folder, which is made. Raises UserError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_owner(folder)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            yield
    except OSError as error:
        raise UserError(
            f"engine: the sparse kernels cannot be built: {error.filename or folder}: {error.strerror} ({_ELSEWHERE})"
        ) from error


def clear(folder: Path) -> None:
    """Delete what an earlier build left there, whole or not."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _sum_file(folder: Path) -> Path:
    return folder / f"{NAME}.so.sha256"


def _check_owner(path: Path) -> None:
    """Raise UserError where a file is no plain one of this user's, or the machine's."""
    about = path.lstat()
    whose = not hasattr(os, "getuid") or about.st_uid in (os.getuid(), 0)
    if not whose or stat.S_ISLNK(about.st_mode):
        what = "is a link" if whose else "belongs to another user"
        raise UserError(f"engine: the sparse kernels are not loaded: {path} {what} ({_ELSEWHERE})")
