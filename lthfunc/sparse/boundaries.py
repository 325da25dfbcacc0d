"""Where values enter and leave a program: rows of examples on one side, tiles on the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lthfunc.sparse.axes import Side
from lthfunc.sparse.builder import Builder, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, STORED
from lthfunc.sparse.lowerings.placing import addresses_of, covers, filled, placed
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


def loaded_sequence(
    b: Builder, shape: tuple[int, ...], dtype: torch.dtype, *, stored: torch.dtype | None = None, first: int = 0,
    needs: bool = False,
) -> View:  # fmt: skip
    """An input of tokens (length) or of anything (length, features), or of any other dimensions.

    stored: the dtype in which its numbers are given, by default its own. first, needs: as of `loaded`.
    """
    whole_numbers = not dtype.is_floating_point
    rows, columns = (1, math.prod(shape)) if whole_numbers else (math.prod(shape[:-1]), shape[-1])
    view = loaded(b, (rows, 1, columns), stored or dtype, first=first, needs=needs)
    view.value.dtype = dtype
    arrangement = view.arrangement.reshaped([view.arrangement.sizes[0], *shape])
    return arranged_view(view.value, arrangement)


def handed_in(b: Builder, shape: tuple[int, ...], dtype: torch.dtype, first: int = 0, *, needs: bool = False) -> View:
    """A tensor of PyTorch's, given as float32. Arguments as of `loaded`."""
    if dtype == torch.float32 and len(shape) in (1, 3):
        return loaded(b, shape, first=first, needs=needs)
    return loaded_sequence(b, shape, dtype, stored=torch.float32, first=first, needs=needs)


def can_be_handed_out(found: object) -> bool:
    """Whether PyTorch can be given what an operation gave: numbers, each example's beside each other."""
    if not isinstance(found, View) or found.value.dtype != torch.float32:
        return False
    batch, *others = ([axis.side for axis in each] for each in found.arrangement.dimensions)
    return batch == [Side.EXAMPLE] and not any(Side.EXAMPLE in each for each in others)


def apart(b: Builder, views: Sequence[View]) -> list[View]:
    """Views to hand out, each all of one value: copies where they are parts of one, or seen in several orders."""
    flat = [view._replace(flat=True) if view.arranged is None else view for view in views]
    orders = {view.value: {other.arrangement for other in flat if other.value is view.value} for view in flat}
    return [
        view if covers(view) and len(orders[view.value]) == 1
        else placed(b, view, [Side.EXAMPLE, *[Side.CHANNEL] * len(view.shape)])
        for view in flat
    ]  # fmt: skip


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
