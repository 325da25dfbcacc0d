"""The steps of a recurrent layer, in one direction: products of the state before, cells, and their gradients."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from lthfunc.sparse.builder import Builder, Value
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, CONSTANTS, RECURRENT, SUMS
from lthfunc.sparse.lowerings.interface import WHOLE_SUMS, Param, gradient_at, value_at
from lthfunc.sparse.lowerings.parameters import bias_gradients
from lthfunc.sparse.lowerings.product_columns import UNFUSED, sums_columns
from lthfunc.sparse.lowerings.whole_layers import gradients_of_rows
from lthfunc.sparse.patterns import matrix_lists
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer

_TILES_AT_ONCE = CONSTANTS["TILES_AT_ONCE"]
#: Numbers of a unit that are made of its inputs and state.
_GATES = {"lstm": 4, "gru": 3, "tanh": 1, "relu": 1}


class Direction(NamedTuple):
    """Weights of one direction of a layer."""

    of_inputs: Param
    of_state: Param
    bias_of_inputs: Param | None
    bias_of_state: Param | None


class Unrolled:
    """The steps of one direction. gates: the inputs' products, which become gates. number: of the direction. order:
    (step, the one before it or None), as they are taken; a step that is the one before itself goes on from what the
    program's last run left there."""

    def __init__(
        self, b: Builder, kind: str, gates: Value, out: Value, weights: Direction, units: int, number: int,
        order: Sequence[tuple[int, int | None]],
    ) -> None:  # fmt: skip
        self._b, self._kind, self._gates, self._out, self._units = b, kind, gates, out, units
        self._weight, self._bias = weights.of_state.name, weights.bias_of_state
        self._first_channel, self._steps = number * units, out.buffer.width
        self._order = order
        self._across = min(b.tiles, _TILES_AT_ONCE)
        self._hidden = b.allocate(3 * units, 1, self._steps) if kind == "gru" else None
        self._cells = b.allocate(units, 1, self._steps) if kind == "lstm" else None

    @property
    def states(self) -> list[TileBuffer]:
        """What a step hands on to the next one: outputs, and an LSTM's cells."""
        return [self._out.buffer, *([] if self._cells is None else [self._cells])]

    @property
    def _rows(self) -> int:
        return _GATES[self._kind] * self._units

    def _state_at(self, buffer: TileBuffer, step: int | None) -> int:
        return -1 if step is None else buffer.first + self._first_channel * buffer.channel + step

    def emit(self) -> None:
        """Step after step: the state's products, then what units make of them."""
        b = self._b
        for step, before in self._order:
            if before is not None:
                b.emit(functools.partial(self._products, step, before))
            b.emit(functools.partial(self._cell, step, before))

    def gradients(self) -> None:
        """Of the gates, step by step from the last one on; then of the weights."""
        b = self._b
        grad, gates = b.gradient_of(self._out), self._gates
        # Those of the state need the gates' gradient even where nothing else does.
        into = b.target(gates).buffer if gates.needs else b.allocate(*gates.buffer.layout)
        into_hidden = b.allocate(3 * self._units, 1, self._steps) if self._kind == "gru" else None
        carry = b.allocate(self._units) if self._kind == "lstm" else None
        back = into_hidden or into
        for step, before in reversed(self._order):
            b.emit(functools.partial(
                self._cell_gradient, step, before, grad, into, into_hidden, carry,
                fresh=(step, before) == self._order[-1],
            ))  # fmt: skip
            if before is not None:
                b.emit(functools.partial(self._products_gradient, step, before, back, grad))
        if self._steps > 1 and self._weight not in b.frozen:
            b.whole_layer(self._weight, lambda: self._whole_layer(back))
            b.emit(lambda: self._weight_gradients(back))
        if (first := gradient_at(b, self._bias)) >= 0:
            bias_gradients(b, first, back)

    def _channels(self, name: str, buffer: TileBuffer, count: int | None = None) -> int:
        """A list of where some channels of a buffer lie."""
        return self._b.shared((self, name), lambda: self._b.table(torch.arange(count or self._rows) * buffer.channel))

    def _lists_of(self, read: TileBuffer, *, transposed: bool) -> dict[str, int]:
        b = self._b

        def made() -> dict[str, int]:
            addresses = torch.arange(self._rows if transposed else self._units) * read.channel
            each, survivors = self._across * VECTOR_BYTES, b.weights[self._weight].survivors
            lists = matrix_lists((self._rows, self._units), addresses, each, survivors, transposed=transposed)
            return b.matrix_lists(self._weight, lists)

        return b.shared((self, transposed), made)

    def _between(self, read: TileBuffer, at: int, into: TileBuffer, to: int, **columns: int) -> dict[str, int]:
        """Columns of a product from one place of a buffer to a place of another, many tiles at a time."""
        return {
            "in": at, "in_tile": read.tile, "in_y": 0, "in_x": read.tile, "out": to, "out_tile": into.tile, "out_y": 0,
            "out_x": into.tile, "ny": 1, "nx": 1, "limits": -1, "kernel_y": 0, "kernel_x": 0,
            "values": self._b.leaves[self._weight].first, "bias": -1, "relu": 0, "gate": -1, "across": self._across,
            **UNFUSED, **sums_columns(None), "out_half": 0, "streamed": 0, **columns,
        }  # fmt: skip

    def _products(self, step: int, before: int) -> Any:
        states = self._out.buffer
        into = self._hidden if self._hidden is not None else self._gates.buffer
        columns = self._between(
            states, self._state_at(states, before), into, into.first + step, accumulate=int(self._hidden is None),
            row_out=self._channels("of gates", into),
        )  # fmt: skip
        return "products", BY_ROWS, self._rows, columns | self._lists_of(states, transposed=False)

    def _products_gradient(self, step: int, before: int, back: TileBuffer, grad: TileBuffer) -> Any:
        columns = self._between(
            back, back.first + step, grad, self._state_at(grad, before), accumulate=1,
            row_out=self._channels("of states", grad, self._units),
        )  # fmt: skip
        return "products", BY_ROWS, self._units, columns | self._lists_of(back, transposed=True)

    def _steps_before(self, back: TileBuffer) -> dict[str, int]:
        """Columns of states and of the gates' gradients after them, over all steps but the first, as over places of an
        image."""
        states = self._out.buffer
        first = min(step for step, before in self._order if before is not None)
        before = min(before for _, before in self._order if before is not None)
        return {
            "in": self._state_at(states, before), "in_tile": states.tile, "in_y": 0, "in_x": 1,
            "grad": back.first + first, "grad_tile": back.tile, "grad_y": 0, "grad_x": 1, "ny": 1,
            "nx": self._steps - 1,
        }  # fmt: skip

    def _weight_gradients(self, back: TileBuffer) -> Any:
        reads = self._lists_of(self._out.buffer, transposed=False)
        return "weight_gradients", SUMS, self._rows, {
            **self._steps_before(back), "starts": reads["starts"], "blocks": reads["blocks"],
            "offsets": reads["offsets"], "row_grad": self._channels("of gradients", back),
            "gradients": self._b.leaves[self._weight].first, "bias": -1, "across": 0, **WHOLE_SUMS,
        }  # fmt: skip

    def _whole_layer(self, back: TileBuffer) -> Any:
        return gradients_of_rows(
            self._b, self._steps_before(back), torch.arange(self._units) * self._out.buffer.channel,
            torch.arange(self._rows) * back.channel, columns=self._units,
        )  # fmt: skip

    def _places(self, step: int, before: int | None) -> dict[str, int]:
        gates, states = self._gates.buffer, self._out.buffer
        return {
            "kind": RECURRENT.index(self._kind),
            "gates": gates.first + step, "gates_tile": gates.tile, "gates_channel": gates.channel,
            **_sequence_columns("hidden", self._hidden, step), **_sequence_columns("cell", self._cells, step),
            "cell_before": -1 if self._cells is None or before is None else self._cells.first + before,
            "state": self._state_at(states, step), "state_tile": states.tile, "state_channel": states.channel,
            "state_before": self._state_at(states, before),
        }  # fmt: skip

    def _cell(self, step: int, before: int | None) -> Any:
        columns = {**self._places(step, before), "bias": value_at(self._b, self._bias)}
        return "recurrent_cell", BY_TILES, self._units, columns

    def _cell_gradient(
        self, step: int, before: int | None, grad: TileBuffer, into: TileBuffer, into_hidden: TileBuffer | None,
        carry: TileBuffer | None, *, fresh: bool,
    ) -> Any:  # fmt: skip
        return "recurrent_cell_gradient", BY_TILES, self._units, {
            **self._places(step, before),
            "grad": self._state_at(grad, step), "grad_tile": grad.tile, "grad_channel": grad.channel,
            "grad_before": self._state_at(grad, before), **_sequence_columns("carry", carry, 0), "fresh": int(fresh),
            **_sequence_columns("into", into, step), **_sequence_columns("into_hidden", into_hidden, step),
        }  # fmt: skip


def _sequence_columns(prefix: str, buffer: TileBuffer | None, step: int) -> dict[str, int]:
    if buffer is None:
        return {prefix: -1, f"{prefix}_tile": 0, f"{prefix}_channel": 0}
    return {prefix: buffer.first + step, f"{prefix}_tile": buffer.tile, f"{prefix}_channel": buffer.channel}
