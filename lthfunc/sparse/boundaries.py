"""Where values enter and leave a program: rows of examples on one side, tiles on the other."""

from __future__ import annotations

import torch

from lthfunc.sparse.builder import Builder, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, STORED
from lthfunc.sparse.tile_buffers import TileBuffer

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


def store(b: Builder, buffer: TileBuffer, first: int = 0) -> None:
    """Hand out a value. first: numbers of an example in the outputs before this one."""
    _by_address(b, "store_outputs", "in", buffer, first)


def load_gradient(b: Builder, value: Value, first: int = 0) -> None:
    """Take in the gradient of a value that was handed out; the first part of its gradient."""
    target = b.target(value)
    _by_address(b, "load_gradients", "out", target.buffer, first)
    if target.gate is not None:
        b.rectify(target, target.gate)


def store_input_gradient(b: Builder, value: Value, first: int = 0) -> None:
    """Hand out the gradient of an input, of which all parts are written."""
    _by_address(b, "store_input_gradients", "in", b.gradient_of(value), first)


def _by_address(b: Builder, name: str, prefix: str, at: TileBuffer, first: int) -> None:
    b.emit(lambda: (name, BY_TILES, at.features, {
        prefix: at.first, f"{prefix}_tile": at.tile, "addresses": b.table(at.addresses()), "first": first,
    }))  # fmt: skip
