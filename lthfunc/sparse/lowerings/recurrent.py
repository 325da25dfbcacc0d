"""Recurrent layers: LSTM, GRU and RNN, unrolled, with one list of survivors for all steps of a sequence.

The inputs' products are a linear layer over all steps at once. A step then adds those of the state before it, as a
linear layer between two places of a sequence. Backwards, steps hand their gradients on, and the weights' are one sum
over all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.lowerings.interface import Lowering, Param, Unsupported, aten, claim, lowers
from lthfunc.sparse.lowerings.placing import placed
from lthfunc.sparse.lowerings.pointwise import dropout
from lthfunc.sparse.lowerings.recurrent_steps import Direction, Unrolled
from lthfunc.sparse.lowerings.tokens import tokens_linear
from lthfunc.sparse.lowerings.zeros import Zeros
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view

#: PyTorch's operations, and what the kernels call them.
RECURRENT_LAYERS = {
    aten.lstm.input: "lstm", aten.gru.input: "gru", aten.rnn_tanh.input: "tanh", aten.rnn_relu.input: "relu",
}  # fmt: skip


#: Told of memory that the next run of a program is to find as this one leaves it.
Keep = Callable[[Builder, TileBuffer], None]


def recurrent(kind: str, keep: Keep | None = None) -> Lowering:
    """The lowering of a kind of recurrent layer. keep: for sequences of one step, which goes on from what the one
    before left there, and are given no states."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View | None]:
        view, states, params, biased, layers, share, training, both, batch_first = args
        states = states if isinstance(states, list) else [states]
        if not (isinstance(view, View) and all(isinstance(each, View) for each in states)):
            raise Unsupported("of a parameter or buffer")
        if not all(isinstance(state.value, Zeros) for state in states):
            raise Unsupported("from a state that is not zero")
        if not all(isinstance(each, Param) for each in params):
            raise Unsupported("with weights that are no parameters of their own")
        each = 4 if biased else 2
        if len(params) != each * layers * (1 + both):
            raise Unsupported("with projections")
        directions = [
            Direction(*params[first : first + each], *[None] * (4 - each)) for first in range(0, len(params), each)
        ]
        view = _sequence(b, view, time=1 if batch_first else 0)
        for layer in range(layers):
            if layer and share and training:
                view = view.of(dropout(b, [View(view.value), share, True], {}).value)
            mine = directions[layer * (1 + both) : (layer + 1) * (1 + both)]
            view = _layer(b, kind, view, mine, 1 if batch_first else 0, keep)
        # There are no values of the last states of all layers; outputs have those of the last layer.
        return [view, *[None] * (2 if kind == "lstm" else 1)]

    return lowering


for _operation, _kind in RECURRENT_LAYERS.items():
    lowers(_operation, arranged=True)(recurrent(_kind))


def _sequence(b: Builder, view: View, time: int) -> View:
    """The view with its steps along the columns and its features along the channels of one value."""
    sizes = view.arrangement.sizes
    if len(sizes) != 3:
        raise Unsupported("of a sequence without a batch")
    steps, batch = view.arrangement.dimensions[time], view.arrangement.dimensions[1 - time]
    laid_out = (
        view.value.buffer.size == (sizes[2], 1, sizes[time])
        and steps == merged([Axis(Side.COLUMN, sizes[time])])
        and view.arrangement.dimensions[2] == merged([Axis(Side.CHANNEL, sizes[2])])
    )
    if [axis.side for axis in batch] != [Side.EXAMPLE]:
        raise Unsupported("without a batch dimension")
    sides = [Side.EXAMPLE, Side.COLUMN] if time else [Side.COLUMN, Side.EXAMPLE]
    return view if laid_out else placed(b, view, [*sides, Side.CHANNEL])


def _layer(
    b: Builder, kind: str, view: View, directions: Sequence[Direction], time: int, keep: Keep | None
) -> View:  # fmt: skip
    """All directions of a layer, whose states lie beside each other."""
    units = b.weights[directions[0].of_state.name].shape[1]
    steps = view.arrangement.sizes[time]
    gates = [tokens_linear(b, view, each.of_inputs, each.bias_of_inputs).value for each in directions]
    # A sequence of one step begins and ends with zeros, of which no weight has a gradient.
    learns = [claim(b, each.of_state if steps > 1 else None, each.bias_of_state) for each in directions]
    needs = any(learns) or any(value.needs for value in gates)
    out = Value(TileBuffer(units * len(directions), 1, steps), needs)

    def emit(operation: Operation) -> None:
        b.hold(out.buffer)
        unrolled = [
            Unrolled(b, kind, value, out, each, units, number, [(0, 0)] if keep else _order(steps, number))
            for number, (value, each) in enumerate(zip(operation.inputs, directions, strict=True))
        ]
        for each in unrolled:
            each.emit()
            if keep is not None:
                for buffer in each.states:
                    keep(b, buffer)

        def gradient() -> None:
            for each in unrolled:
                each.gradients()
            b.release(out)

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation(gates, out, emit))
    dimensions = list(view.arrangement.dimensions)
    dimensions[2] = merged([Axis(Side.CHANNEL, units * len(directions))])
    return arranged_view(out, Arrangement(tuple(dimensions)))


def _order(steps: int, number: int) -> list[tuple[int, int | None]]:
    """(step, the one before it or None) in the order of a layer's first direction, or of its second one."""
    order = range(steps)[:: -1 if number else 1]
    return list(zip(order, [None, *order], strict=False))
