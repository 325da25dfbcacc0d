"""Copies of parts: of a value into another, and of parts of parts in one go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lthfunc.sparse.builder import Operation, Value

Sides = tuple[int, int, int]


class Places(NamedTuple):
    """Places of a value that are copied into another. All of (channels, rows, columns).

    size: how many there are. starts, steps: of the value that is read; into: the first of the one that is written.
    """

    size: Sides
    starts: Sides
    steps: Sides
    into: Sides

    def of(self, whole: Places) -> Places:
        """The same places of the value that `whole` was copied from."""
        starts = [a + each * step for a, each, step in zip(whole.starts, self.starts, whole.steps, strict=True)]
        steps = [a * step for a, step in zip(self.steps, whole.steps, strict=True)]
        return Places(self.size, sides_of(starts), sides_of(steps), self.into)


def sides_of(numbers: Sequence[int]) -> Sides:
    """Numbers of channels, rows and columns."""
    channels, rows, columns = numbers
    return channels, rows, columns


def join_parts(operations: Sequence[Operation], outputs: Sequence[Value]) -> None:
    """Have an operation that copies from a copy alone, which nothing else reads, copy from the original."""
    readers = Counter(value for operation in operations for value in operation.inputs)
    readers.update(outputs)
    writers: dict[Value, Operation] = {}
    for operation in operations:
        for number, value in enumerate(operation.inputs if operation.copies else ()):
            before = writers.get(value)
            if before is not None and readers[value] == 1:
                operation.copies[number] = operation.copies[number].of(before.copies[0])
                operation.inputs[number], before.inputs, before.host = before.inputs[0], [], operation
        if len(operation.copies) == 1 and operation.copies[0].size == operation.out.buffer.size:
            writers[operation.out] = operation
