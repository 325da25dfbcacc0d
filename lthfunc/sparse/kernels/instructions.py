"""What C++ and Python share: `instructions.def`, which the compiler includes and this module reads."""

from __future__ import annotations

import re
from pathlib import Path

_TEXT = Path(__file__).with_name("instructions.def").read_text(encoding="utf-8")


def _entries(macro: str) -> list[list[str]]:
    """The arguments of each use of a macro."""
    found = re.findall(rf"^{macro}\(([^)]*)\)", _TEXT, re.MULTILINE)
    return [[word.strip() for word in each.replace("\n", " ").split(",")] for each in found]


def _names(macro: str) -> tuple[str, ...]:
    return tuple(name for (name,) in _entries(macro))


#: Columns that all instructions have, before their own: opcode, split, rows, work.
HEAD = 4
#: name -> names of its own columns.
COLUMNS: dict[str, tuple[str, ...]] = {name: tuple(columns) for name, *columns in _entries("INSTRUCTION")}
OPCODES: dict[str, int] = {name: number for number, name in enumerate(COLUMNS)}
WIDTH = HEAD + max(len(columns) for columns in COLUMNS.values())
#: Numbers that kernels and lowerings share.
CONSTANTS: dict[str, int] = {name: int(value) for name, value in _entries("CONSTANT")}
#: Dtypes of stored inputs, what batch normalisation saves, pointwise functions, what two values are made to, kinds of
#: recurrent layers: a name's place is its number.
STORED, SAVED, POINTWISE = _names("STORED"), _names("SAVED"), _names("POINTWISE")
COMBINED, RECURRENT = _names("COMBINED"), _names("RECURRENT")
#: How the machine may split an instruction.
BY_ROWS, BY_TILES, SUMS, WHOLE = map(_names("SPLIT").index, ("by_rows", "by_tiles", "sums", "whole"))


def column_of(name: str, column: str) -> int:
    """Where in a row of a program one of an instruction's own columns is."""
    return HEAD + COLUMNS[name].index(column)


def encoded(name: str, split: int, rows: int, work: int, **values: int) -> list[int]:
    """One row of a program. Every column must be given, by name; a column left out or unknown is a mistake."""
    columns = COLUMNS[name]
    if set(values) != set(columns):
        raise ValueError(f"{name}: columns {sorted(set(values) ^ set(columns))} are missing or unknown")
    row = [OPCODES[name], split, rows, work, *(int(values[column]) for column in columns)]
    return row + [0] * (WIDTH - len(row))
