"""Names of runs: short ones that tell several apart, and the one that was meant by a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lthfunc.errors import invalid
from lthfunc.printable import printable
from lthfunc.runs import safe_files


def like_run(folder: Path, metrics: str) -> str:
    """If a path does not exist, the run beside it with the closest name, as a question that follows a message; or "".

    metrics: the file that every run has.
    """
    if folder.exists():
        return ""
    with suppress(OSError):
        near = difflib.get_close_matches(folder.name, safe_files.names(folder.parent, folder.parent))
        for beside in map(folder.with_name, near):
            if safe_files.status(beside, beside / metrics) is not None:
                return f"; did you mean {str(beside)!r}?"
    return ""


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """Short names for runs: the last part of each path, or as many parts as make it unique.

    Raises UserError where one is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len({*parts}) < len(parts):
        raise invalid("RUN", ", ".join(map(str, folders)), "each run once")
    names = []
    for mine in parts:
        length = 1
        while length < len(mine) and sum(other[-length:] == mine[-length:] for other in parts) > 1:
            length += 1
        names.append(printable("/".join(mine[-length:]), keep=""))
    return names
