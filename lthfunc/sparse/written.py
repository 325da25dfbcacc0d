"""Instructions as late functions write them, once memory is laid out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

#: An instruction: (name, split, rows, columns).
Instruction = tuple[str, int, int, dict[str, int]]
#: Gives an instruction once memory is laid out, on which its columns depend.
Late = Callable[[], Instruction]
T = TypeVar("T")


@dataclass
class Written:
    """What a late function gave when it was last called: its instruction, and what it added to lists and `shared`.

    asked: whether it asked where survivors lie. row: the instruction as the machine has it, once that was written.
    """

    instruction: Instruction
    lists: list[Tensor]
    shared: dict[Hashable, Any]
    asked: bool
    row: list[int] = field(default_factory=list)


def _alike(one: Written, other: Written) -> bool:
    """Whether two are the same but for what their lists say."""
    lengths = [[len(each) for each in written.lists] for written in (one, other)]
    return (one.instruction, one.shared, lengths[0]) == (other.instruction, other.shared, lengths[1])


@dataclass(kw_only=True)
class Writer:
    """Writes a program's instructions and lists, again and again as other weights survive.

    positions: int64 (survivors,), where in the flattened leaf those of each prunable one lie, rising. written: by late
    functions, in the instructions' order.
    """

    instructions: list[Late] = field(default_factory=list)
    lists: list[Tensor] = field(default_factory=list)
    list_entries: int = 0
    positions: dict[str, Tensor] = field(default_factory=dict)
    written: list[Written] = field(default_factory=list)
    _shared: dict[Hashable, Any] = field(default_factory=dict)
    _asked: bool = False

    def table(self, values: Tensor) -> int:
        """Store a list; returns where it begins. Called when addresses are known."""
        if values.dtype != torch.int32:
            if values.numel() and int(values.max()) >= 2**31:
                raise OverflowError("a list reaches further than 32 bits count")
            values = values.to(torch.int32)
        self.lists.append(values)
        self.list_entries += values.numel()
        return self.list_entries - values.numel()

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What several late functions use, such as a list: made by the first of them."""
        if key not in self._shared:
            self._shared[key] = make()
        found: T = self._shared[key]
        return found

    def positions_of(self, name: str) -> Tensor:
        """Where a leaf's survivors lie. Called by late functions alone."""
        self._asked = True
        return self.positions[name]

    def write_all(self) -> list[Written]:
        """Call all late functions, after memory was laid out; gives what they gave.

        What one gave before is taken again where it did not ask which weights survive, and all before it added lists as
        long as then, so that they lie where they lay.
        """
        before, same = self.written, bool(self.written)
        self._begin()
        self.written = []
        for number, late in enumerate(self.instructions):
            if same and not before[number].asked:
                self._add(before[number])
            else:
                self.written.append(self._write(late))
                same = same and _alike(self.written[-1], before[number])
        return self.written

    def write_beside(self, instructions: Sequence[Late]) -> list[Written]:
        """Call late functions of a program of its own, on the memory that was laid out."""
        self._begin()
        return [self._write(late) for late in instructions]

    def _begin(self) -> None:
        self.lists, self.list_entries, self._shared = [], 0, {}

    def _write(self, late: Late) -> Written:
        lists, known, self._asked = len(self.lists), set(self._shared), False
        instruction = late()
        shared = {key: value for key, value in self._shared.items() if key not in known}
        return Written(instruction, self.lists[lists:], shared, self._asked)

    def _add(self, written: Written) -> None:
        self.written.append(written)
        self.lists += written.lists
        self.list_entries += sum(map(len, written.lists))
        self._shared |= written.shared
