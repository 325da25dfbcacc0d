"""Where in a user's own code an error comes from, in one line."""

from __future__ import annotations

import functools
import importlib.util
import linecache
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from lthfunc import errors

T = TypeVar("T")


def user_location(error: BaseException) -> str:
    """The line of user code that an error comes from, in parentheses, or "".

    Lines of torch and of this library don't count, and the user's own come before those of installed packages.
    """
    frames = [(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)]
    own = [frame for frame in frames if "site-packages" not in frame[0]]
    return user_line(own) or user_line(frames)


def user_line(frames: Iterable[tuple[str, int]]) -> str:
    """The innermost of these (file, line number) that is user code: " (line 3 of net.py: …)", or ""."""
    outside = [frame for frame in frames if _foreign(frame[0])]
    if not outside:
        return ""
    file, number = outside[-1]
    return f" (line {number} of {file}: {linecache.getline(file, number).strip()})"


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def is_library_function(function: Any) -> bool:
    """Whether a function is this library's rather than a user's."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__module__", "")).startswith("lthfunc.")


def function_name(function: Any) -> str:
    """The name by which a user knows a function."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__qualname__", type(function).__name__)).rpartition(".")[2]


def call_user_function(option: str, name: str, call: Callable[[], T]) -> T:
    """The call's result. Whatever a user's function raises, even SystemExit, becomes a UserError with its line."""
    try:
        return call()
    except errors.UserError:
        raise
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise errors.UserError(f"{option}: {name!r} fails{user_location(error)}: {what}") from error


def _foreign(file: str) -> bool:
    # Installed packages are in a folder below Python's own library.
    folders = _others()
    others = [folder for folder in folders if file.startswith(folder)]
    return not others or (others == [folders[-1]] and "site-packages" in file)


@functools.cache
def _others() -> tuple[str, ...]:
    """Folders in which no user's mistake can be: torch, optree and this library; last Python's own library."""
    found = [importlib.util.find_spec(name) for name in ("torch", "torchvision", "optree")]
    files = [spec.origin for spec in found if spec is not None and spec.origin] + [errors.__file__, os.__file__]
    return ("<frozen", "<eval_with_key", *(str(Path(file).parent) for file in files))
