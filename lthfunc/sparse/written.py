"""Instructions as late functions write them, once memory is laid out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from lthfunc.sparse.patterns import MatrixLists

#: An instruction: (name, split, rows, columns).
Instruction = tuple[str, int, int, dict[str, int]]
#: Gives an instruction once memory is laid out, on which its columns depend.
Late = Callable[[], Instruction]
T = TypeVar("T")


class SurvivorLists(Protocol):
    """Lists that follow from where a leaf's survivors lie, one after the other, as long wherever that is."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of each."""

    def write(self, positions: Tensor, into: Tensor) -> Tensor:
        """Write them. positions: as `Writer` has them. into: int32, of their lengths together, which is returned."""


class OfSurvivors(NamedTuple):
    """A table of lists of survivors. at: its number among those that a late function added."""

    at: int
    weight: str
    lists: SurvivorLists


@dataclass
class Written:
    """What a late function gave when it was last called: its instruction, and what it added to lists and `shared`.

    of_survivors: those of its lists that follow from where survivors lie. asked: whether anything else does. row: the
    instruction as the machine has it, once that was written.
    """

    instruction: Instruction
    lists: list[Tensor]
    shared: dict[Hashable, Any]
    of_survivors: list[OfSurvivors]
    asked: bool
    row: list[int] = field(default_factory=list)


def _alike(one: Written, other: Written) -> bool:
    """Whether two are the same but for what their lists say."""
    lengths = [[len(each) for each in written.lists] for written in (one, other)]
    return (one.instruction, one.shared, lengths[0]) == (other.instruction, other.shared, lengths[1])


def _room_for(lists: SurvivorLists) -> Tensor:
    return torch.empty(sum(lists.lengths), dtype=torch.int32)


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
    _of_survivors: list[OfSurvivors] = field(default_factory=list)
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

    def survivor_lists(self, name: str, lists: SurvivorLists) -> int:
        """Store lists of a leaf's survivors; returns where they begin. As other weights survive they alone are made
        anew."""
        self._of_survivors.append(OfSurvivors(len(self.lists), name, lists))
        return self.table(lists.write(self.positions[name], _room_for(lists)))

    def matrix_lists(self, name: str, lists: MatrixLists) -> dict[str, int]:
        """The same of a leaf that is a matrix, as columns of an instruction."""
        starts = self.survivor_lists(name, lists)
        offsets = starts + lists.lengths[0]
        which = offsets + lists.survivors if lists.transposed else -1
        return {"starts": starts, "offsets": offsets, "which": which, "blocks": lists.blocks}

    def all_of_survivors(self) -> list[tuple[int, OfSurvivors]] | None:
        """The lists that follow from where survivors lie, and where each begins; None where anything else does."""
        if any(each.asked for each in self.written):
            return None
        begin, found = 0, []
        for each in self.written:
            begins = list(accumulate(map(len, each.lists), initial=begin))
            found += [(begins[lists.at], lists) for lists in each.of_survivors]
            begin = begins[-1]
        return found

    def write_all(self) -> list[Written]:
        """Call all late functions, after memory was laid out; gives what they gave.

        What one gave before, but for lists of survivors, is taken again where it did not ask which weights survive, and
        all before it added lists as long as then, so that they lie where they lay.
        """
        before, same = self.written, bool(self.written)
        self._begin()
        self.written = []
        for number, late in enumerate(self.instructions):
            if same and not before[number].asked:
                self._add(self._written_again(before[number]))
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
        lists, known, self._asked, self._of_survivors = len(self.lists), set(self._shared), False, []
        instruction = late()
        shared = {key: value for key, value in self._shared.items() if key not in known}
        of_survivors = [each._replace(at=each.at - lists) for each in self._of_survivors]
        return Written(instruction, self.lists[lists:], shared, of_survivors, self._asked)

    def _written_again(self, written: Written) -> Written:
        """The same with lists of those weights that survive now."""
        lists = list(written.lists)
        for at, weight, of in written.of_survivors:
            lists[at] = of.write(self.positions[weight], _room_for(of))
        return replace(written, lists=lists)

    def _add(self, written: Written) -> None:
        self.written.append(written)
        self.lists += written.lists
        self.list_entries += sum(map(len, written.lists))
        self._shared |= written.shared
