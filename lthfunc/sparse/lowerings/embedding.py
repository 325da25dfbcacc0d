"""Embeddings: rows of a table by the numbers of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.axes import Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, WHOLE
from lthfunc.sparse.lowerings.dense import DenseWeights
from lthfunc.sparse.lowerings.dimensions import sliced
from lthfunc.sparse.lowerings.interface import Param, Unsupported, argument, aten, claim, lowers
from lthfunc.sparse.lowerings.parameters import as_view, folded
from lthfunc.sparse.lowerings.placing import as_tokens, covers
from lthfunc.sparse.tile_buffers import LANES, TileBuffer
from lthfunc.sparse.views import arranged_view

#: Tokens are held as floats, which count exactly up to here.
_MOST_TOKENS = 2**24


@lowers(aten.embedding.default, arranged=True)
def embedding(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """embedding(weight, tokens, padding_idx)."""
    weight, tokens, padding = args[0], folded(b, args[1]), int(argument(args, 2, -1))
    if isinstance(weight, Param) and isinstance(tokens, Tensor):
        if _are_in_order(tokens, b.shapes[weight.name][0], padding):
            return _part(b, weight, tokens)
        tokens = _constant(b, tokens, b.shapes[weight.name][0])
    if not isinstance(weight, Param) or not isinstance(tokens, View) or tokens.value.dtype != torch.int64:
        raise Unsupported("of anything but a parameter and tokens")
    vocabulary, channels = b.weights[weight.name].shape
    if vocabulary > _MOST_TOKENS:
        raise Unsupported(f"of more than {_MOST_TOKENS:,} rows")
    if any(argument(args, place, False) for place in (3, 4)):
        raise Unsupported("scaled by frequencies or with a sparse gradient")
    # Tokens lie along one row, in the order in which a new value has them.
    tokens = _one_row(b, tokens)
    places = tokens.value.buffer.width
    learns = claim(b, weight)
    dense = DenseWeights(b, weight.name)
    out = Value(TileBuffer(channels, 1, places), needs=learns)

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        dense.spread(first=True)

        def shared() -> dict[str, int]:
            return {
                "tokens": x.buffer.first, "tokens_tile": x.buffer.tile, "places": places, "vocabulary": vocabulary,
                "channels": channels,
            }  # fmt: skip

        b.emit(lambda: ("embed", BY_TILES, -(-channels // LANES), {
            **shared(), **dense.table, "out": out.buffer.first, "out_tile": out.buffer.tile,
            "out_channel": out.buffer.channel,
        }))  # fmt: skip

        def gradient() -> None:
            grad = b.gradient_of(out)
            words = -(-channels // LANES)
            room = b.allocate(-(-vocabulary * words // b.tiles))

            def of_grad() -> dict[str, int]:
                return {
                    "grad": grad.first, "grad_tile": grad.tile, "grad_channel": grad.channel, "padding": padding,
                }  # fmt: skip

            b.whole_layer(weight.name, lambda: ("largest_embedding_gradients", WHOLE, vocabulary, {
                **{name: number for name, number in shared().items() if name != "vocabulary"}, **of_grad(),
            }))  # fmt: skip
            b.emit(lambda: ("embedding_gradient", BY_ROWS, words, {
                **shared(), **of_grad(), "room": room.first, "words": words,
            }))  # fmt: skip

            def gathered() -> Any:
                positions = b.positions_of(weight.name)
                places_in_room = positions // channels * (words * LANES) + positions % channels
                return "gather_gradients", BY_ROWS, len(positions), {
                    "in": room.first, "places": b.table(places_in_room), "gradients": b.leaves[weight.name].first,
                }  # fmt: skip

            if b.weights[weight.name].survivors:
                b.emit(gathered)
            b.release(out)

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation([tokens.value], out, emit))
    last = merged([Axis(Side.CHANNEL, channels)])
    return arranged_view(out, tokens.arrangement._replace(dimensions=(*tokens.arrangement.dimensions, last)))


@lowers(aten.index.Tensor, arranged=True)
def index(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """table[rows] of a parameter and constant numbers, such as biases of attention by relative places."""
    table, (first, *others) = args[0], args[1]
    numbers = folded(b, first)
    is_matrix = isinstance(table, Param) and len(b.shapes[table.name]) == 2
    if not is_matrix or others or not isinstance(numbers, Tensor) or numbers.dtype != torch.int64:
        raise Unsupported("of anything but a matrix of parameters by constant numbers of rows")
    rows = b.shapes[table.name][0]
    found: View = embedding(b, [table, torch.where(numbers < 0, numbers + rows, numbers)], {})
    return found


def _are_in_order(numbers: Tensor, rows: int, padding: int) -> bool:
    """Whether numbers of rows are those of a part of a table, such as those of places, without that of padding."""
    places = numbers.flatten()
    start, step = int(places[0]), int(places[1] - places[0]) if len(places) > 1 else 1
    evenly = step > 0 and torch.equal(places, torch.arange(start, start + step * len(places), step))
    return evenly and 0 <= start <= int(places[-1]) < rows and not bool((places == padding).any())


def _part(b: Builder, weight: Param, numbers: Tensor) -> View:
    """Rows of a table that lie in order, which examples share."""
    first, last = int(numbers.flatten()[0]), int(numbers.flatten()[-1])
    step = max(1, (last - first) // max(1, numbers.numel() - 1))
    found = sliced(as_view(b, weight), 0, first, numbers.numel(), step)
    return arranged_view(found.value, found.arrangement.reshaped([*numbers.shape, b.shapes[weight.name][1]]))


def _constant(b: Builder, numbers: Tensor, rows: int) -> View:
    """Numbers of rows as tokens that examples share."""
    if not numbers.numel() or int(numbers.min()) < 0 or int(numbers.max()) >= rows:
        raise Unsupported("of rows that the table has not")
    return as_view(b, numbers)


def _one_row(b: Builder, tokens: View) -> View:
    """The tokens along one row of places, all of its value."""
    buffer = tokens.value.buffer
    if covers(tokens) and (buffer.channels, buffer.height) == (1, 1):
        return tokens
    with_one = tokens.arrangement.with_one(len(tokens.arrangement.dimensions))
    found = as_tokens(b, arranged_view(tokens.value, with_one))
    return arranged_view(found.value, found.arrangement.without(len(with_one.dimensions) - 1))
