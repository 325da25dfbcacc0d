"""Files of JSON lines that grow: a line is there whole, or what an interruption left of it counts for nothing.

Each line ends in its own checksum, ``, "sha256": "…"}``: the SHA-256 of the line as it would be without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.errors import DamagedError
from lthfunc.trees.writing import naming, write_atomically

_SUM = re.compile(r', "sha256": "([0-9a-f]{64})"\}$')


class Line(NamedTuple):
    """A whole line of a file. number: from 1; value: None where it is damaged, for a reason."""

    number: int
    value: dict[str, Any] | None
    reason: str | None = None


def line_of(item: Mapping[str, Any]) -> str:
    """An object as a line, checksum included, without its end."""
    text = json.dumps(item)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-1]}, "sha256": "{digest}"}}'


def value_of(text: str, *, summed: bool = True) -> dict[str, Any]:
    """A line's object, without its checksum. Raises ValueError where it is damaged.

    summed: whether it must have a sum; lines of version 0.1.0 have none, and are believed.
    """
    found = _SUM.search(text)
    if not found and summed:
        raise ValueError("it has no checksum at its end")
    if found:
        text = text[: found.start()] + "}"
        if hashlib.sha256(text.encode()).hexdigest() != found[1]:
            raise ValueError("its checksum is another")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def append_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each item, and wait until the disk has them; what can't be added whole is taken back."""
    with naming(path), path.open("ab") as file:
        before = file.tell()
        try:
            file.write("".join(line_of(item) + "\n" for item in items).encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.truncate(path, before)
            raise


def scan_lines(path: Path, *, summed: bool = True) -> list[Line]:
    """All whole lines, damaged ones with the reason. summed: see `value_of`."""
    lines = []
    for number, raw in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(Line(number, value_of(raw.decode("utf-8"), summed=summed)))
        except ValueError as error:  # not UTF-8 among them
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            lines.append(Line(number, None, reason))
    return lines


def damage_of(path: Path) -> list[str]:
    """What is wrong with the whole lines of a file that may be missing, in lines."""
    lines = scan_lines(path) if path.exists() else []
    return [f"{path.name}: line {line.number} is damaged: {line.reason}" for line in lines if line.value is None]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines, with sums or without. Raises DamagedError where one is damaged."""
    values = []
    for number, value, reason in scan_lines(path, summed=False):
        if value is None:
            raise DamagedError(f"{path}: line {number} is damaged: {reason}")
        values.append(value)
    return values


def drop_partial_line(path: Path) -> None:
    """Remove a last line that an interruption cut off, so that new lines start at a line's start."""
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        write_atomically(path, text[: text.rfind(b"\n") + 1])
