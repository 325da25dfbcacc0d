"""Append-only files of JSON lines; a line that an interruption cut off is ignored.

Each line ends in its own checksum, ``, "sha256": "…"}``: the SHA-256 of the line as it would be without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.errors import DamagedError, UserError
from lthfunc.experiments.config import current_names
from lthfunc.runs import safe_files

_SUM = re.compile(r', "sha256": "([0-9a-f]{64})"\}$')


#: What is wrong with a line's object, or None.
LineCheck = Callable[[dict[str, Any]], "str | None"]


class JsonLine(NamedTuple):
    """A complete line of a file. number: from 1; value: None if it is damaged, for a reason."""

    number: int
    value: dict[str, Any] | None
    reason: str | None = None


def line_of(item: Mapping[str, Any]) -> str:
    """An object as a line, with its checksum, without a line break."""
    text = json.dumps(item)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f'{text[:-1]}, "sha256": "{digest}"}}'


def value_of(text: str) -> dict[str, Any]:
    """A line's object, without its checksum. Raises ValueError if it is damaged."""
    found = _SUM.search(text)
    if not found:
        raise ValueError("it has no checksum at its end")
    text = text[: found.start()] + "}"
    if hashlib.sha256(text.encode()).hexdigest() != found[1]:
        raise ValueError("its checksum does not match")
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def append_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each item and flush them to disk; if that fails, remove what was added."""
    safe_files.append(path.parent, path, "".join(line_of(item) + "\n" for item in items).encode())


def scan_lines(path: Path, problem: LineCheck = lambda line: None) -> list[JsonLine]:
    """All complete lines; damaged ones have a reason. problem: what is wrong with the content of a line."""
    lines = []
    for number, raw in enumerate(_content(path).split(b"\n")[:-1], 1):
        value = None
        try:
            value = value_of(raw.decode("utf-8"))
            reason = problem(value)
        except ValueError as error:  # not UTF-8 among them
            reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        lines.append(JsonLine(number, value if reason is None else None, reason))
    return lines


def whole_lines(path: Path, problem: LineCheck = lambda line: None) -> tuple[list[dict[str, Any]], list[str]]:
    """(the undamaged lines of a file that may be missing, problems in words). problem: as for `scan_lines`."""
    try:
        lines = scan_lines(path, problem)
    except FileNotFoundError:
        return [], []
    except DamagedError as error:  # not a regular file
        return [], [f"{path.name}: {str(error).removeprefix(f'{path}: ')}"]
    wrong = [f"{path.name}: line {each.number} is damaged: {each.reason}" for each in lines if each.value is None]
    return [each.value for each in lines if each.value is not None], wrong


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a file that may be missing. Raises DamagedError if one is damaged."""
    values, wrong = whole_lines(path)
    if wrong:
        raise DamagedError(f"{path.parent}/{wrong[0]}")
    return values


def drop_partial_line(path: Path) -> None:
    """Remove a last line that an interruption cut off, so that new lines start on a line of their own."""
    with safe_files.opened(path.parent, path) as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
    text = _content(path)
    safe_files.write(path.parent, path, text[: text.rfind(b"\n") + 1])


def _content(path: Path) -> bytes:
    return safe_files.read(path.parent, path, safe_files.MOST)


def open_log(path: Path, named: Path, about: Mapping[str, Any], free: Collection[str]) -> list[dict[str, Any]]:
    """Start a file of results with a line about all of them, or read the lines of one that was started with the same.

    named: the path as the user gave it. free: settings of the file that need not be among those of `about`. The machine
    may be another one. Raises UserError for another file.
    """
    if safe_files.status(path.parent, path) is None:
        append_lines(path, [about])
        return []
    lines = read_lines(path)
    drop_partial_line(path)
    if not lines or lines[0].get("kind") != about["kind"]:
        raise UserError(f"--out: {str(named)!r} has other content; name another")
    mine, theirs = _members(about), _members({name: lines[0].get(name) for name in about})
    order = list(about)
    for key in sorted({**theirs, **mine}, key=lambda key: (order.index(key[0]), key[1])):
        if mine.get(key) != theirs.get(key) and (key in mine or key[1] not in free):
            difference = f"{key[1]} is {theirs.get(key)!r} there, but {mine.get(key)!r} here"
            raise UserError(f"--out: {str(named)!r} has other results: {difference}; name another")
    return [{key: value for key, value in line.items() if key != "kind"} for line in lines[1:]]


def _members(about: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """The members of a description, one by one: (member, name in its table, where it is one) -> value."""
    return {
        (member, name): value
        for member, each in about.items()
        for name, value in current_names(each if isinstance(each, dict) else {member: each}).items()
        if member != "machine"
    }
