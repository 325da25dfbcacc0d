"""The code that this user has run before, by the checksums of its files.

A run names code in its settings, and may come from a stranger; so this record is in the user's cache, not in the run.
An entry has the setting, the function and its options, since a stranger could choose others out of the same file.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal, NamedTuple

from filelock import FileLock

from lthfunc.hardware import cache_home
from lthfunc.trees.atomic_io import write_atomically

#: Most entries of the record; the oldest are dropped.
_MOST = 1_000


class _Code(NamedTuple):
    """A function or a file of weights. key: of its entry; source: its file; root: the folder that it imports from."""

    key: str
    source: Path
    root: Path


def remember(code: Mapping[str, Sequence[str]], values: Mapping[str, Any]) -> None:
    """Record code that the user has allowed, with the modules that it has imported from its folder.

    code: the names of functions and files, by setting. values: all settings.
    """
    new = {each.key: {str(path): _sum(path) for path in _files(each)} for each in _all(code, values)}
    known = _read()
    if all(known.get(key) == sums for key, sums in new.items()):
        return
    with suppress(OSError):  # where the user's folder is read-only, the next command asks again
        _record().parent.mkdir(parents=True, exist_ok=True)
        with FileLock(_record().with_suffix(".lock")):  # or another command's entry would be lost
            known = _read()
            kept = {**{key: sums for key, sums in known.items() if key not in new}, **new}
            payload = json.dumps(dict(list(kept.items())[-_MOST:]), indent=0) + "\n"
            write_atomically(_record(), payload.encode())


def compared(code: Mapping[str, Sequence[str]], values: Mapping[str, Any]) -> dict[str, Literal["new", "changed"]]:
    """The settings whose code this user has not run before with these options, or not as it is now."""
    known, found = _read(), dict[str, Literal["new", "changed"]]()
    for setting, names in code.items():
        entries = [known.get(each.key) for each in _all({setting: names}, values)]
        if len(entries) < len(names) or None in entries:
            found[setting] = "new"
        elif any(_sum(Path(path)) != wanted for sums in entries for path, wanted in (sums or {}).items()):
            found[setting] = "changed"
    return found


def _all(code: Mapping[str, Sequence[str]], values: Mapping[str, Any]) -> Iterator[_Code]:
    for setting, names in code.items():
        for name in names:
            module, _, attribute = name.rpartition(":") if ":" in name else (name, "", "")
            found = _source(module)
            if found is not None:
                options = values.get(f"{setting}_option") or {}
                yield _Code(json.dumps([setting, str(found[0]), attribute, options], sort_keys=True), *found)


def _source(module: str) -> tuple[Path, Path] | None:
    """The file of a module, or a file itself, and the folder that it imports from. Nothing is imported."""
    if (path := Path(os.path.realpath(module))).is_file():  # Path.resolve raises for links in a circle
        return path, path.parent
    places: Sequence[str] | None = [str(Path.cwd()), *sys.path]
    spec = None
    for depth in range(1, module.count(".") + 2):
        spec = PathFinder.find_spec(".".join(module.split(".")[:depth]), places)
        places = None if spec is None else spec.submodule_search_locations
        if spec is None:
            return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    path = Path(os.path.realpath(spec.origin))
    return path, path.parents[module.count(".") + (path.stem == "__init__")]


def _files(code: _Code) -> set[Path]:
    loaded = [(name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items())]
    paths = {Path(file).resolve() for name, file in loaded if file and not name.startswith("lthfunc")}
    return {code.source} | {
        path for path in paths
        if path.suffix == ".py" and path.is_relative_to(code.root) and "site-packages" not in path.parts
    }  # fmt: skip


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(1 << 20):
                digest.update(part)
            return digest.hexdigest()
    except OSError:
        return ""


def _record() -> Path:
    return cache_home() / "code.json"


def _read() -> dict[str, dict[str, str]]:
    """The record; empty where it is missing, damaged or another user's."""
    path = _record()
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: sums for key, sums in entries if isinstance(sums, dict) and sums}
