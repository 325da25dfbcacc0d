"""Where in a user's own code an error comes from, in one line."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

from lthfunc import errors


def place_of(error: BaseException) -> str:
    """The line outside of torch and of this library that an error comes from, in brackets, or nothing."""
    return users_line((frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__))


def users_line(frames: Iterable[tuple[str, int]]) -> str:
    """The innermost of these lines (file, number) outside of torch and of this library: " (line 3 of net.py: …)"."""
    outside = [frame for frame in frames if _foreign(frame[0])]
    if not outside:
        return ""
    file, number = outside[-1]
    return f" (line {number} of {file}: {linecache.getline(file, number).strip()})"


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _foreign(file: str) -> bool:
    # Installed packages lie in a folder below Python's own library.
    folders = _others()
    others = [folder for folder in folders if file.startswith(folder)]
    return not others or (others == [folders[-1]] and "site-packages" in file)


@functools.cache
def _others() -> tuple[str, ...]:
    """Where a user's mistake cannot be: torch, optree, this library; last Python's own library."""
    found = [importlib.util.find_spec(name) for name in ("torch", "torchvision", "optree")]
    files = [spec.origin for spec in found if spec is not None and spec.origin] + [errors.__file__, os.__file__]
    return ("<frozen", *(str(Path(file).parent) for file in files))
