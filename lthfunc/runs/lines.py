"""Files of JSON lines that grow: a line is there whole, or what an interruption left of it counts for nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError
from lthfunc.trees.files import write_atomically


def append_lines(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Add a line for each item, and wait until the disk has them."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines. Raises UserError where one is not JSON."""
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(keepends=True), 1):
        if not line.endswith("\n"):
            break
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not JSON") from error
    return lines


def drop_partial_line(path: Path) -> None:
    """Remove a last line that an interruption cut off, so that new lines start at a line's start."""
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        write_atomically(path, text[: text.rfind(b"\n") + 1])
