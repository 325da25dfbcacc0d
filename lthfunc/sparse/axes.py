"""How the dimensions of a tensor lie in a value: views, transpositions and the like move nothing, they are strides.

A dimension is a list of axes, outermost first, each of which steps along one side of the value's buffer. So every
reshaping that merges or divides dimensions is a matter of sorting axes into lists.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class Side(IntEnum):
    """What an axis steps along; REPEATED: nothing, so that all of it is one place."""

    EXAMPLE = 0
    CHANNEL = 1
    ROW = 2
    COLUMN = 3
    REPEATED = 4


class Axis(NamedTuple):
    """size: how many places; step: from one to the next, counted in the side's own."""

    side: Side
    size: int
    step: int = 1


Dimension = tuple[Axis, ...]


class NotStridesError(ValueError):
    """This arrangement cannot be expressed by strides."""


class Arrangement(NamedTuple):
    """Dimensions of a tensor (that of the batch among them), and where its first place is: (channel, row, column)."""

    dimensions: tuple[Dimension, ...]
    first: tuple[int, int, int] = (0, 0, 0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the tensor."""
        return tuple(size_of(each) for each in self.dimensions)

    @property
    def axes(self) -> Dimension:
        """All of them, outermost first."""
        return tuple(axis for dimension in self.dimensions for axis in dimension)

    def reshaped(self, shape: Sequence[int]) -> Arrangement:
        """As another shape, of which one size may be -1. NotStridesError if an axis would be divided unevenly."""
        sizes = list(shape)
        if -1 in sizes:
            known = math.prod(size for size in sizes if size != -1)
            sizes[sizes.index(-1)] = math.prod(self.sizes) // max(1, known)
        left, found = list(merged(self.axes)), []
        for size in sizes:
            taken: list[Axis] = []
            while (missing := size // size_of(taken)) > 1:
                if not left:
                    raise NotStridesError
                axis = left.pop(0)
                if missing % axis.size == 0:
                    taken.append(axis)
                    continue
                rest, uneven = divmod(axis.size, missing)
                if uneven or axis.side is Side.EXAMPLE:
                    raise NotStridesError
                taken.append(axis._replace(size=missing, step=axis.step * rest))
                left.insert(0, axis._replace(size=rest))
            if size_of(taken) != size:
                raise NotStridesError
            found.append(merged(taken))
        if left:
            raise NotStridesError
        return self._replace(dimensions=tuple(found))

    def permuted(self, order: Sequence[int]) -> Arrangement:
        """Its dimensions in another order."""
        return self._replace(dimensions=tuple(self.dimensions[each] for each in order))

    def part(self, dim: int, start: int, count: int, step: int = 1) -> Arrangement:
        """Every step-th place of a dimension, `count` of them. Raises NotStridesError where axes don't end there."""
        dimension = self.dimensions[dim]
        if (start, step, count) == (0, 1, size_of(dimension)):
            return self
        if count == 1:
            return self._moved(dim, _at(dimension, start), ())
        if any(axis.side is Side.EXAMPLE for axis in dimension):
            raise NotStridesError
        outer, inner = dimension[0], dimension[1:]
        each = size_of(inner)
        if each > 1 and (step != 1 or start % each or count % each):
            if step != 1 or start // each != (start + count - 1) // each:
                raise NotStridesError
            # Within one place of the outermost axis.
            within = self._moved(dim, [(outer, start // each)], inner)
            return within.part(dim, start % each, count)
        kept = (outer._replace(size=count // each, step=outer.step * step), *inner)
        return self._moved(dim, [(outer, start // each)], merged(kept))

    def without(self, dim: int) -> Arrangement:
        """Without a dimension of size one."""
        return self._replace(dimensions=self.dimensions[:dim] + self.dimensions[dim + 1 :])

    def with_one(self, dim: int) -> Arrangement:
        """With a dimension of size one before that of this number."""
        return self._replace(dimensions=(*self.dimensions[:dim], (), *self.dimensions[dim:]))

    def repeated(self, sizes: Sequence[int], examples: int) -> Arrangement:
        """Expanded to sizes, of which -1 stays. examples: the size of the batch, by which its dimension is told."""
        missing = len(sizes) - len(self.dimensions)
        old: list[Dimension] = [()] * missing + list(self.dimensions)
        has_batch = any(axis.side is Side.EXAMPLE for axis in self.axes)
        for number, size in enumerate(sizes):
            if size not in (-1, size_of(old[number])):
                batch = number == 0 and size == examples and not has_batch
                old[number] = (Axis(Side.EXAMPLE if batch else Side.REPEATED, size),)
        return self._replace(dimensions=tuple(old))

    def _moved(self, dim: int, places: Sequence[tuple[Axis, int]], dimension: Dimension) -> Arrangement:
        first = list(self.first)
        for axis, number in places:
            if axis.side is Side.EXAMPLE:
                raise NotStridesError
            if axis.side is not Side.REPEATED:
                first[axis.side - Side.CHANNEL] += number * axis.step
        dimensions = (*self.dimensions[:dim], dimension, *self.dimensions[dim + 1 :])
        return Arrangement(dimensions, (first[0], first[1], first[2]))


def size_of(dimension: Sequence[Axis]) -> int:
    """Places of a dimension."""
    return math.prod(axis.size for axis in dimension)


def merged(axes: Sequence[Axis]) -> Dimension:
    """The same dimension of as few axes as it takes."""
    found: list[Axis] = []
    for axis in axes:
        if axis.size == 1:
            continue
        last = found[-1] if found else None
        if last is not None and last.side is axis.side and last.step == axis.step * axis.size:
            found[-1] = axis._replace(size=last.size * axis.size)
        else:
            found.append(axis)
    return tuple(found)


def only(dimension: Dimension) -> Axis:
    """The axis of a dimension that has one at most; one that is stepped along once, for a dimension without."""
    return dimension[0] if dimension else Axis(Side.REPEATED, 1, 0)


def side(which: Side, size: int) -> Dimension:
    """A dimension that is all of a side."""
    return merged([Axis(which, size)])


def _at(dimension: Sequence[Axis], place: int) -> list[tuple[Axis, int]]:
    """For each axis the number that leads to a place."""
    found = []
    for axis in reversed(dimension):
        place, number = divmod(place, axis.size)
        found.append((axis, number))
    return found
