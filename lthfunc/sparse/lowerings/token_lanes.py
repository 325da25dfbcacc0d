"""One token of each sequence where lanes are tokens: what it reads of the tokens before it, and of its place."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged, only
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES
from lthfunc.sparse.lowerings.attention import dropping, heads_of, operand, write_gradients
from lthfunc.sparse.lowerings.interface import Lowering, Unsupported, claim, lowers, sequences
from lthfunc.sparse.lowerings.parameters import as_leaf, as_view
from lthfunc.sparse.lowerings.placing import first_of, stride
from lthfunc.sparse.lowerings.token_masks import added_to_scores, mask_columns, no_mask
from lthfunc.sparse.tile_buffers import LANES, TileBuffer
from lthfunc.sparse.views import arranged_view


def causal_attention_among_lanes(*operands: Any, **settings: Any) -> None:
    """Stands for attention of the tokens of a sequence to themselves and those before them."""


def full_attention_among_lanes(*operands: Any, **settings: Any) -> None:
    """Stands for attention among all tokens of a sequence."""


def row_of_lane(*operands: Any) -> None:
    """Stands for the rows of a table that belong to the tokens' places: row_of_lane(table)."""


def learned_row_of_lane(*operands: Any) -> None:
    """Stands for the same of a parameter, by places in it: learned_row_of_lane(parameter, places)."""


def _attention(causal: bool) -> Lowering:
    def attention(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        """attention(q, k, v), each of one place. of_keys, of_queries: terms of a mask, if there are any."""
        views = [operand(b, as_view(b, each)) for each in args]
        (*_, features), (*_, value_features) = (view.arrangement.sizes for view in views[1:])
        heads, shared = heads_of(views)
        masks = {name: added_to_scores(b, kwargs[name], heads) for name in ("of_keys", "of_queries") if name in kwargs}
        out = Value(TileBuffer(heads * value_features, 1, 1), needs=any(view.value.needs for view in views))
        result = Arrangement((
            views[0].arrangement.dimensions[0], merged([Axis(Side.CHANNEL, heads, value_features)]), (),
            merged([Axis(Side.CHANNEL, value_features)]),
        ))  # fmt: skip
        values = list(dict.fromkeys(view.value for view in [*views, *masks.values()]))
        scale, dropped = kwargs.get("scale"), float(kwargs.get("dropout_p", 0.0))
        settings = {
            **sequences(b), "features": features, "value_features": value_features, "group": heads // shared,
            "causal": int(causal), **dropping(b, dropped),
        }  # fmt: skip

        def emit(operation: Operation) -> None:
            read = dict(zip(values, operation.inputs, strict=True))
            inputs = [read[view.value] for view in views]
            b.hold(out.buffer)
            number = b.numbers([1 / math.sqrt(features) if scale is None else float(scale), 1 / (1 - dropped)])
            saved = b.allocate(2 * heads) if b.training and out.needs else None

            def common() -> dict[str, int]:
                named = zip("qkv", inputs, views, strict=True)
                operands = [_columns(name, value.buffer, view.arrangement) for name, value, view in named]
                return {
                    **operands[0], **operands[1], **operands[2], **_columns("out", out.buffer, result),
                    **no_mask("of_keys"), **no_mask("of_queries"), **settings, "scale": number,
                    "keep_scale": number + 1, "saved": -1 if saved is None else saved.first,
                    "saved_tile": 0 if saved is None else saved.tile,
                    **{column: place for name, view in masks.items()
                       for column, place in mask_columns(name, read[view.value].buffer, view.arrangement).items()},
                }  # fmt: skip

            b.emit(lambda: ("token_attention", BY_ROWS, shared, common()))

            def gradient() -> None:
                write_gradients(b, out, result, inputs, [view.arrangement for view in views], lambda gradients: (
                    "token_attention_gradient", BY_ROWS, shared, {**common(), **gradients},
                ))  # fmt: skip

            if out.needs:
                b.backward.append(gradient)

        b.operations.append(Operation(values, out, emit))
        found = arranged_view(out, result)
        return found if len(as_view(b, args[0]).arrangement.sizes) == 4 else arranged_view(out, result.without(1))

    return attention


lowers(causal_attention_among_lanes, arranged=True)(_attention(causal=True))
lowers(full_attention_among_lanes, arranged=True)(_attention(causal=False))


@lowers(row_of_lane, arranged=True)
def row(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """row_of_lane(table)."""
    (table,) = args
    shape, tiles = tuple(table.shape[1:]), sequences(b)["tiles"]
    room = _room(shape)
    first = b.numbers(_by_tiles(table.flatten(1), tiles, 0.0).tolist())
    out = Value(room, needs=False)

    def emit(operation: Operation) -> None:
        b.hold(out.buffer)
        b.emit(lambda: ("load_places", BY_TILES, room.features, {
            "out": room.first, "out_tile": room.tile, "first": first, "tiles": tiles,
            "addresses": b.table(_addresses(room)),
        }))  # fmt: skip

    b.operations.append(Operation([], out, emit))
    return as_leaf(out, shape)


@lowers(learned_row_of_lane, arranged=True)
def learned_row(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """learned_row_of_lane(parameter, places)."""
    leaf, table = args
    count, name, tiles = math.prod(b.shapes[leaf.name]), leaf.name, sequences(b)["tiles"]
    if len(table.unique()) < table.numel():
        raise Unsupported("of a parameter's numbers that several tokens read")
    if not b.leaves[name].size:
        raise Unsupported("of a parameter without survivors")
    shape, places = tuple(table.shape[1:]), _by_tiles(table.flatten(1), tiles, -1)
    room = _room(shape)
    out = Value(room, needs=claim(b, leaf))

    def positions() -> Tensor:
        whole = b.leaves[name].size == count
        return torch.arange(count) if whole else b.positions_of(name)

    def among_survivors() -> Tensor:
        """The numbers of values that lanes read; -1 for none."""
        numbers = torch.full((count + 1,), -1)  # the last one is that of place -1
        numbers[positions()] = torch.arange(b.leaves[name].size)
        return numbers[places]

    def readers(grad: TileBuffer) -> Tensor:
        """Where, in floats, the token of the first sequence that reads a value has its gradient; -1 where none does."""
        tile, lane = torch.arange(tiles)[:, None, None], torch.arange(LANES)
        at = ((tile * grad.tile + _addresses(grad)[:, None]) * LANES + lane).flatten()
        found = torch.full((count + 1,), -1)
        found[places] = at
        return found[positions()]

    def emit(operation: Operation) -> None:
        b.hold(room)
        b.emit(lambda: ("load_place_values", BY_TILES, room.features, {
            "out": room.first, "out_tile": room.tile, "first": b.leaves[name].first, "tiles": tiles,
            "addresses": b.table(_addresses(room)), "places": b.table(among_survivors()),
        }))  # fmt: skip

        def gradient() -> None:
            grad = b.gradient_of(out)
            b.emit(lambda: ("place_gradients", BY_ROWS, b.leaves[name].size, {
                "grad": grad.first, "grad_tile": grad.tile, "places": b.table(readers(grad)), "tiles": tiles,
                "gradients": b.leaves[name].first,
            }))  # fmt: skip
            b.release(out)

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation([], out, emit))
    return as_leaf(out, shape)


def _room(shape: tuple[int, ...]) -> TileBuffer:
    """For one token's numbers of this shape: the last dimension along channels, the others along places."""
    channels = (shape or (1,))[-1]
    return TileBuffer(channels, 1, math.prod(shape) // channels)


def _addresses(room: TileBuffer) -> Tensor:
    """Of the numbers of such a shape, one after the other."""
    number = torch.arange(room.features)
    return number % room.channels * room.channel + number // room.channels


def _by_tiles(table: Tensor, tiles: int, rest: float) -> Tensor:
    """A table (tokens, numbers) as (tiles, numbers, 16), flattened. rest: what stands behind the last token."""
    filled = F.pad(table, (0, 0, 0, tiles * LANES - len(table)), value=rest)
    return filled.view(tiles, LANES, -1).mT.flatten()


def _columns(name: str, buffer: TileBuffer, arrangement: Arrangement) -> dict[str, int]:
    return {
        name: first_of(arrangement, buffer), f"{name}_tile": buffer.tile,
        f"{name}_head": stride(only(arrangement.dimensions[1]), buffer),
        f"{name}_feature": stride(only(arrangement.dimensions[3]), buffer),
    }  # fmt: skip
