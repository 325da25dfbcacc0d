"""Values one after the other along a dimension, in memory of their own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from lthfunc.sparse.axes import Arrangement, Axis, Dimension, Side, merged
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.interface import Unsupported
from lthfunc.sparse.lowerings.placing import copied_into


def joined(b: Builder, views: Sequence[View], dim: int) -> View:
    """Views one after the other along a dimension. The last dimension is then the channels, the others are places."""
    sizes = [view.arrangement.sizes for view in views]
    if any(each[:dim] + each[dim + 1 :] != sizes[0][:dim] + sizes[0][dim + 1 :] for each in sizes):
        raise Unsupported("of different shapes")
    batch = {_place_of_batch(view) for view in views} - {-1}
    if len(batch) != 1 or dim in batch:
        raise Unsupported("along the batch, or of views that have it in different places")
    together = list(sizes[0])
    together[dim] = sum(each[dim] for each in sizes)
    (at,) = batch
    dimensions: list[Dimension] = [()] * len(together)
    dimensions[at] = (Axis(Side.EXAMPLE, together[at]),)
    places, channels = 1, 1
    for number in reversed(range(len(together))):
        if number == at:
            continue
        if number == len(together) - 1:
            channels = together[number]
            dimensions[number] = merged([Axis(Side.CHANNEL, channels)])
        else:
            dimensions[number] = merged([Axis(Side.COLUMN, together[number], places)])
            places *= together[number]
    all_of_it = Arrangement(tuple(dimensions))
    starts = itertools.accumulate((each[dim] for each in sizes), initial=0)
    parts = [all_of_it.part(dim, start, each[dim]) for start, each in zip(starts, sizes, strict=False)]
    return copied_into(b, views, (channels, 1, places), parts, all_of_it)


def _place_of_batch(view: View) -> int:
    """The number of the dimension that is the batch; -1 where none is."""
    for number, dimension in enumerate(view.arrangement.dimensions):
        if any(axis.side is Side.EXAMPLE for axis in dimension):
            if len(dimension) > 1:
                raise Unsupported("of views that have the batch beside others in one dimension")
            return number
    return -1
