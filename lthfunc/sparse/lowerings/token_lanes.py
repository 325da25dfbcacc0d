"""One token of each sequence where lanes are tokens: what it reads of the tokens before it, and of its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged, only
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES
from lthfunc.sparse.lowerings.attention import operand
from lthfunc.sparse.lowerings.interface import Unsupported, lowers
from lthfunc.sparse.lowerings.parameters import as_leaf, as_view
from lthfunc.sparse.lowerings.placing import first_of, stride
from lthfunc.sparse.tile_buffers import LANES, TileBuffer
from lthfunc.sparse.views import arranged_view


@dataclass
class LanesBuilder(Builder):
    """Collects a program whose examples are the tokens of sequences, each filled up to `tiles_each` tiles."""

    tiles_each: int = 1


def attention_among_lanes(*operands: Any, **settings: Any) -> None:
    """Stands for causal attention among the tokens of a sequence."""


def row_of_lane(*operands: Any) -> None:
    """Stands for the rows of a table that belong to the tokens' places: row_of_lane(table)."""


@lowers(attention_among_lanes, arranged=True)
def attention(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """attention_among_lanes(q, k, v), each of one place."""
    assert isinstance(b, LanesBuilder)
    views = [operand(b, as_view(b, each)) for each in args]
    (*_, features), (*_, value_features) = (view.arrangement.sizes for view in views[1:])
    heads, shared, others = (only(view.arrangement.dimensions[1]).size for view in views)
    if shared != others or heads % shared:
        raise Unsupported("of heads that don't share keys and values evenly")
    out = Value(TileBuffer(heads * value_features, 1, 1), needs=False)
    result = Arrangement((
        views[0].arrangement.dimensions[0], merged([Axis(Side.CHANNEL, heads, value_features)]), (),
        merged([Axis(Side.CHANNEL, value_features)]),
    ))  # fmt: skip
    values = list(dict.fromkeys(view.value for view in views))
    scale = kwargs.get("scale")

    def emit(operation: Operation) -> None:
        read = dict(zip(values, operation.inputs, strict=True))
        q, k, v = (read[view.value].buffer for view in views)
        b.hold(out.buffer)
        number = b.numbers([1 / math.sqrt(features) if scale is None else float(scale)])
        b.emit(lambda: ("token_attention", BY_ROWS, shared, {
            **_columns("q", q, views[0].arrangement), **_columns("k", k, views[1].arrangement),
            **_columns("v", v, views[2].arrangement), **_columns("out", out.buffer, result), "tiles": b.tiles_each,
            "features": features, "value_features": value_features, "group": heads // shared, "scale": number,
        }))  # fmt: skip

    b.operations.append(Operation(values, out, emit))
    return arranged_view(out, result)


@lowers(row_of_lane, arranged=True)
def row(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """row_of_lane(table)."""
    assert isinstance(b, LanesBuilder)
    (table,) = args
    shape, tiles = tuple(table.shape[1:]), b.tiles_each
    channels, count = (shape or (1,))[-1], table[0].numel()
    first = b.numbers(_by_tiles(table.reshape(len(table), count), tiles).tolist())
    out = Value(TileBuffer(channels, 1, count // channels), needs=False)

    def emit(operation: Operation) -> None:
        b.hold(out.buffer)
        b.emit(lambda: ("load_places", BY_TILES, count, {
            "out": out.buffer.first, "out_tile": out.buffer.tile, "first": first, "tiles": tiles,
            "addresses": b.table(
                torch.arange(count) % channels * out.buffer.channel + torch.arange(count) // channels
            ),
        }))  # fmt: skip

    b.operations.append(Operation([], out, emit))
    return as_leaf(out, shape)


def _by_tiles(table: Tensor, tiles: int) -> Tensor:
    """A table (tokens, numbers), with zeros behind the last token, as (tiles, numbers, 16), flattened."""
    filled = F.pad(table, (0, 0, 0, tiles * LANES - len(table)))
    return filled.view(tiles, LANES, -1).mT.flatten()


def _columns(name: str, buffer: TileBuffer, arrangement: Arrangement) -> dict[str, int]:
    return {
        name: first_of(arrangement, buffer), f"{name}_tile": buffer.tile,
        f"{name}_head": stride(only(arrangement.dimensions[1]), buffer),
        f"{name}_feature": stride(only(arrangement.dimensions[3]), buffer),
    }  # fmt: skip
