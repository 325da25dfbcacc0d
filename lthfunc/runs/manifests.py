"""Manifests: the SHA-256 checksums of a training's files, which are verified when a file is read.

``manifest.json`` is a line as `json_lines.py` writes it: ``{"format": "lthfunc.manifest/1", "files": {name: {"sha256":
…, "bytes": …}}, "sha256": …}``. Names are relative to its folder; ``../anchor.safetensors`` lies above it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lthfunc.errors import DamagedError, UserError
from lthfunc.runs import safe_files
from lthfunc.runs.folder import run_of
from lthfunc.runs.json_lines import line_of, value_of
from lthfunc.trees.files import tree_of

MANIFEST = "manifest.json"
#: Most bytes of a manifest.
_MOST = 1_000_000
_FORMAT = "lthfunc.manifest/1"


class Sum(NamedTuple):
    """A file's checksum. sha256: in hexadecimal digits; bytes: its length."""

    sha256: str
    bytes: int


def sum_of(payload: bytes) -> Sum:
    """The checksum of a file's content."""
    return Sum(hashlib.sha256(payload).hexdigest(), len(payload))


def write_manifest(place: Path, files: Mapping[str, Sum]) -> None:
    """Write the manifest of a training's folder."""
    about = {"format": _FORMAT, "files": {name: each._asdict() for name, each in files.items()}}
    safe_files.write(run_of(place), place / MANIFEST, (line_of(about) + "\n").encode())


def read_manifest(place: Path) -> dict[str, Sum]:
    """The checksums of a training's files. Raises DamagedError."""
    path = place / MANIFEST
    try:
        about = value_of(safe_files.read(run_of(place), path, _MOST).decode("utf-8").removesuffix("\n"))
        if about.get("format") != _FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, not {_FORMAT!r}")
        for name in about["files"]:
            if not safe_files.lies_in(run_of(place), place / name):
                raise ValueError(f"it names {name!r}, which does not lie in the run's folder")
        return {name: Sum(str(each["sha256"]), int(each["bytes"])) for name, each in about["files"].items()}
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # ValueError: also for what is not UTF-8
        raise DamagedError(f"{path}: is damaged: {error}") from error


def file_problem(run: Path, path: Path, expected: Sum, *, sizes: bool = False) -> str | None:
    """What is wrong with a file of a run, or None if it is what was written. sizes: check only its size."""
    try:
        with safe_files.opened(run, path) as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected.bytes:
                return f"has {size:,} bytes, not {expected.bytes:,}"
            return None if sizes or _digest(file) == expected.sha256 else "is not what was written"
    except FileNotFoundError:
        return "is missing"
    except DamagedError as error:
        return str(error).removeprefix(f"{path}: ")
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def checked_bytes(place: Path, name: str) -> bytes:
    """A file in a training's folder, verified. Raises DamagedError."""
    path = place / name
    sums = read_manifest(place)
    try:
        payload = safe_files.read(run_of(place), path)
    except FileNotFoundError as error:
        raise DamagedError(f"{path}: is missing (to see what remains: lthfunc verify)") from error
    if name in sums and sum_of(payload) != sums[name]:
        raise DamagedError(
            f"{path}: is damaged: its SHA-256 is not the manifest's (to see what remains: lthfunc verify)"
        )
    return payload


def _digest(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while part := file.read(1 << 20):
        found.update(part)
    return found.hexdigest()


def load_checked(place: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, metadata) of a file in a training's folder, verified as by `checked_bytes`. Raises DamagedError."""
    try:
        return tree_of(checked_bytes(place, name), place / name)
    except DamagedError:
        raise
    except UserError as error:
        raise DamagedError(str(error)) from error
