"""Numbers that a network makes itself: states that recurrent layers begin with, and what masks are written into."""

from __future__ import annotations

from typing import Any

import torch

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.lowerings.interface import Unsupported, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.tile_buffers import TileBuffer


class Zeros(Value):
    """A value of zeros, which the network makes itself."""


@lowers(aten.zeros.default, arranged=True)
def zeros(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """zeros(layers, batch, features), the state that recurrent layers begin with, or steps before the first one; and
    zeros(batch, …)."""
    sizes = args[0]
    if len(sizes) != 3 or sizes[1] != TRACED_BATCH or sizes[0] == TRACED_BATCH:
        return _filled(b, sizes, 0.0, kwargs.get("dtype"))
    value = Zeros(TileBuffer(sizes[2], 1, sizes[0]), needs=False)

    def emit(operation: Operation) -> None:
        if not any(value in each.inputs for each in b.operations):
            return  # recurrent layers read no state before the first one
        b.hold(value.buffer)
        zero = b.numbers([0.0])
        b.fill(value.buffer, zero)

    b.operations.append(Operation([], value, emit))
    batch = (Axis(Side.EXAMPLE, sizes[1]),)
    layers, features = merged([Axis(Side.COLUMN, sizes[0])]), merged([Axis(Side.CHANNEL, sizes[2])])
    return View(value, arranged=Arrangement((layers, batch, features)))


@lowers(aten.ones.default, arranged=True)
def ones(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """ones(batch, …)."""
    return _filled(b, args[0], 1.0, kwargs.get("dtype"))


@lowers(aten.full.default, arranged=True)
def full(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """full((batch, …), number)."""
    return _filled(b, args[0], args[1], kwargs.get("dtype"))


@lowers(aten.new_zeros.default, arranged=True)
def new_zeros(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x.new_zeros(batch, …)."""
    return _filled(b, args[1], 0.0, kwargs.get("dtype") or as_view(b, args[0]).value.dtype)


@lowers(aten.new_ones.default, arranged=True)
def new_ones(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x.new_ones(batch, …)."""
    return _filled(b, args[1], 1.0, kwargs.get("dtype") or as_view(b, args[0]).value.dtype)


@lowers(aten.new_full.default, arranged=True)
def new_full(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x.new_full((batch, …), number)."""
    return _filled(b, args[1], args[2], kwargs.get("dtype") or as_view(b, args[0]).value.dtype)


def _filled(b: Builder, sizes: list[int], number: Any, dtype: torch.dtype | None) -> View:
    """One number for each example, repeated along the other dimensions. What doesn't depend on the batch is a constant
    (`constants.py`), and isn't lowered. dtype: None for that of the number."""
    if not sizes or sizes[0] != TRACED_BATCH:
        raise Unsupported("of sizes in which the batch is not the first")
    dtype = dtype or torch.full((), number).dtype
    if dtype not in (torch.bool, torch.int64, torch.float32):
        raise Unsupported(f"of {dtype}")
    value = Value(TileBuffer(1, 1, 1), needs=False, dtype=dtype)
    constant = b.numbers([float(number)])

    def emit(operation: Operation) -> None:
        b.hold(value.buffer)
        b.fill(value.buffer, constant)

    b.operations.append(Operation([], value, emit))
    rest = tuple(() if size == 1 else (Axis(Side.REPEATED, size),) for size in sizes[1:])
    return View(value, arranged=Arrangement(((Axis(Side.EXAMPLE, TRACED_BATCH),), *rest)))
