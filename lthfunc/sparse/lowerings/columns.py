"""A dimension along the columns of a value's rows, for operations that go along it."""

from __future__ import annotations

from lthfunc.sparse.axes import Axis, Side, merged
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.interface import Unsupported
from lthfunc.sparse.lowerings.placing import covers, placed


def along_columns(b: Builder, view: View, *dims: int) -> View:
    """The view where each row of its value is all of these dimensions and nothing else, or else a copy that is so."""
    dimensions = view.arrangement.dimensions
    if any(axis.side is Side.EXAMPLE for dim in dims for axis in dimensions[dim]):
        raise Unsupported("over the batch")
    row = merged([axis for dim in dims for axis in dimensions[dim]])
    if covers(view) and row == merged([Axis(Side.COLUMN, view.value.buffer.width)]):
        return view
    return placed(b, view, [Side.COLUMN if dim in dims else Side.CHANNEL for dim in range(len(dimensions))])
