"""Numbers drawn for each example: stochastic depth (Huang et al. 2016), as torchvision and timm write it."""

from __future__ import annotations

import math
from typing import Any

from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.interface import Unsupported, argument, aten, drawn, lowers, sequences
from lthfunc.sparse.tile_buffers import TileBuffer


class Empty(Value):
    """A value that nothing has written: only random numbers may be written there."""


@lowers(aten.empty.memory_format, arranged=True)
def empty(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """empty(batch, 1, 1, 1) or empty(batch, 1), for a number of each example."""
    sizes = args[0]
    if sizes[0] != TRACED_BATCH or math.prod(sizes[1:]) != 1 or len(sizes) not in (2, 4):
        raise Unsupported("of anything but a number for each example")
    return View(Empty(TileBuffer(1, 1, 1), needs=False), flat=len(sizes) == 2)


@lowers(aten.bernoulli_.float)
def bernoulli(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """bernoulli_(share): 1 in that share of the examples and 0 in the others; drawn as dropout is."""
    view: View = args[0]
    if not isinstance(view.value, Empty):
        raise Unsupported("of a tensor that already has values")
    draws = {**drawn(b, 1 - float(argument(args, 1, 0.5))), **sequences(b)}
    out = Value(TileBuffer(1, 1, 1), needs=False)

    def emit(operation: Operation) -> None:
        ones = b.allocate(1)
        b.hold(out.buffer)
        one = b.numbers([1.0])
        b.fill(ones, one)
        b.emit(lambda: ("dropout", BY_TILES, 1, {
            **ones.columns("in"), **out.buffer.columns("out"), **out.buffer.sides, **draws, "scale": one,
            "accumulate": 0, "gate": -1,
        }))  # fmt: skip

    b.operations.append(Operation([], out, emit))
    return view.of(out)
