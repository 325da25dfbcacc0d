"""Where values enter and leave a program: rows of examples on one side, tiles on the other."""

from __future__ import annotations

import math

import torch

from lthfunc.sparse.builder import Builder, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, STORED
from lthfunc.sparse.lowerings.placing import addresses_of, covers, filled
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view

#: The dtypes of inputs that kernels read.
KINDS = {getattr(torch, name): number for number, name in enumerate(STORED)}


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape is (channels, height, width), rather than (features)."""
    return len(shape) == 3


def loaded(
    b: Builder,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    gains: list[tuple[float, float]] | None = None,
    first: int = 0,
    needs: bool = False,
) -> View:
    """An input of the program. shape: of an example, (features) or (channels, height, width).

    gains: by channel, what an input is multiplied by and what is then subtracted. first: numbers of an example in the
    inputs before this one. needs: whether its gradient is wanted.
    """
    flat = not is_image(shape)
    channels, height, width = (1, 1, shape[0]) if flat else shape
    buffer = b.allocate(*((shape[0], 1, 1) if flat else (channels, height, width)))
    constants = b.numbers([number for both in gains or [(1.0, 0.0)] * channels for number in both])

    b.emit(lambda: ("load_inputs", BY_TILES, channels, {
        **buffer.columns("out"), "channels": channels, "height": height, "width": width, "kind": KINDS[dtype],
        "constants": constants, "first": first,
        # Features are one channel of as many columns: the same memory.
        **({"out_channel": buffer.tile, "out_row": buffer.features} if flat else {}),
    }))  # fmt: skip
    return View(Value(buffer, needs), flat)


def loaded_sequence(b: Builder, shape: tuple[int, ...], dtype: torch.dtype) -> View:
    """An input of tokens (length) or of anything (length, features), or of any other dimensions."""
    tokens = dtype == torch.int64
    rows, columns = (1, math.prod(shape)) if tokens else (math.prod(shape[:-1]), shape[-1])
    view = loaded(b, (rows, 1, columns), dtype)
    view.value.dtype = dtype
    arrangement = view.arrangement.reshaped([view.arrangement.sizes[0], *shape])
    return arranged_view(view.value, arrangement)


def store(b: Builder, view: View, value: Value, first: int = 0) -> None:
    """Hand out a value as a view has it. first: numbers of an example in the outputs before this one."""
    _by_address(b, "store_outputs", "in", view, value.buffer, first)


def load_gradient(b: Builder, view: View, value: Value, first: int = 0) -> None:
    """Take in the gradient of a value that was handed out; the first part of its gradient."""
    target = b.target(value)
    if not covers(view):
        filled(b, target)
    _by_address(b, "load_gradients", "out", view, target.buffer, first)
    if target.gate is not None:
        b.rectify(target, target.gate)


def store_input_gradient(b: Builder, value: Value, first: int = 0) -> None:
    """Hand out the gradient of an input, of which all parts are written."""
    _by_address(b, "store_input_gradients", "in", View(value, flat=True), b.gradient_of(value), first)


def _by_address(b: Builder, name: str, prefix: str, view: View, at: TileBuffer, first: int) -> None:
    b.emit(lambda: (name, BY_TILES, math.prod(view.shape), {
        prefix: at.first, f"{prefix}_tile": at.tile, "addresses": b.table(addresses_of(view, at)), "first": first,
    }))  # fmt: skip
