"""A changed function put where the unchanged one is, in a process that has imported it already."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from types import CodeType, FunctionType


def functions_of(folder: str) -> dict[str, list[FunctionType]]:
    """All functions of files below a folder that there are now, by file."""
    found: dict[str, list[FunctionType]] = {}
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename.startswith(folder):
            found.setdefault(each.__code__.co_filename, []).append(each)
    return found


def put(functions: list[FunctionType], file: str, old: bytes, new: bytes) -> bool:
    """Give the functions of a file their changed code; whoever has one then calls the changed one.

    False if no function of them is changed, or one cannot be: a closure that now uses other variables.
    """
    codes = dict(_pairs(*(compile(source, file, "exec", dont_inherit=True) for source in (old, new))))
    changed = [each for each in functions if codes.get(each.__code__, each.__code__) != each.__code__]
    try:
        for each in changed:
            each.__code__ = codes[each.__code__]
    except ValueError:
        return False
    return bool(changed)


def _pairs(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    yield old, new
    inner = ([each for each in code.co_consts if isinstance(each, CodeType)] for code in (old, new))
    for pair in zip(*inner, strict=False):
        yield from _pairs(*pair)
