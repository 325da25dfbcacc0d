"""The instructions by name: `instructions.def` is read by the C++ compiler and here, so both know the same columns."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = Path(__file__).with_name("instructions.def").read_text(encoding="utf-8")
_FOUND = re.findall(r"^INSTRUCTION\(([^)]*)\)", _TEXT, re.MULTILINE)
_NAMES = [[word.strip() for word in each.replace("\n", " ").split(",")] for each in _FOUND]

#: name -> names of its columns, without the four that all have: opcode, split, rows, work.
COLUMNS: dict[str, tuple[str, ...]] = {name: tuple(columns) for name, *columns in _NAMES}
OPCODES: dict[str, int] = {name: number for number, name in enumerate(COLUMNS)}
WIDTH = 4 + max(len(columns) for columns in COLUMNS.values())

#: How the machine may split an instruction (machine.cpp says why).
BY_ROWS, BY_TILES, SUMS, WHOLE = range(4)


def encoded(name: str, split: int, rows: int, work: int, **values: int) -> list[int]:
    """One row of a program. Every column must be given, by name; a column left out or unknown is a mistake."""
    columns = COLUMNS[name]
    if set(values) != set(columns):
        raise ValueError(f"{name}: columns {sorted(set(values) ^ set(columns))} are missing or unknown")
    row = [OPCODES[name], split, rows, work, *(int(values[column]) for column in columns)]
    return row + [0] * (WIDTH - len(row))
