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
        return _rows(b, weight, tokens, padding)
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


def _rows(b: Builder, weight: Param, numbers: Tensor, padding: int) -> View:
    """Rows of a table that are known, such as those of places: a part of the table, which examples share."""
    places, (rows, channels) = numbers.flatten(), b.shapes[weight.name]
    start, step = int(places[0]), int(places[1] - places[0]) if len(places) > 1 else 1
    evenly = step > 0 and torch.equal(places, torch.arange(start, start + step * len(places), step))
    if not evenly or not 0 <= start <= int(places[-1]) < rows or bool((places == padding).any()):
        raise Unsupported("of constants but those of rows in their order, without that of padding")
    found = sliced(as_view(b, weight), 0, start, len(places), step)
    return arranged_view(found.value, found.arrangement.reshaped([*numbers.shape, channels]))


def _one_row(b: Builder, tokens: View) -> View:
    """The tokens along one row of places, all of its value."""
    buffer = tokens.value.buffer
    if covers(tokens) and (buffer.channels, buffer.height) == (1, 1):
        return tokens
    with_one = tokens.arrangement.with_one(len(tokens.arrangement.dimensions))
    found = as_tokens(b, arranged_view(tokens.value, with_one))
    return arranged_view(found.value, found.arrangement.without(len(with_one.dimensions) - 1))
