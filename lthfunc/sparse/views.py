"""What operations read and give: values, and how the network sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from lthfunc.sparse.axes import Arrangement, Axis, Side, merged, side
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.tile_buffers import TileBuffer

#: Writes rows of an image from the given one on into a buffer, as many as it has.
WriteRows = Callable[[TileBuffer, int], None]


@dataclass(eq=False)
class Normalised:
    """What batch normalisation gave a value of: of `value`, with constants from `saved` on.

    sums: each tile's of its gradient. summed: whether whoever writes the gradient's last part writes them. gates: the
    gradient passes where the normalised value is above zero, which needs nothing but these constants.
    """

    value: Value
    saved: int
    sums: TileBuffer
    summed: bool = False
    gates: bool = False


@dataclass(eq=False)
class Value:
    """What an operation gives. Views (a flattened value) share one.

    needs: whether a gradient is wanted. dtype: in the network: that of tokens is int64, that of truths bool.
    rectified: whether ReLU was applied in place; whoever writes the last part of its gradient zeroes it where the value
    is not above zero. uses: operations whose gradients it gets. pending: writes the value, with another one added to
    it or None; whoever reads it first calls this. pending_gradient: writes the gradient; whoever reads that calls this.

    sums: each tile's, for a batch normalisation; summable: whoever writes the value can write them. normalised: how
    batch normalisation gave the value, if it did. rewrite: writes a local value once more, for gradients. donation:
    gives the memory of its gradient away once that was read. owed: parts of its gradient that others still write.
    half_gradient: its gradient is held in 16 bits a number. any_halo: whoever reads its gradient takes any halo.

    write_rows: writes some rows of the value, which then has no memory of its own: whoever reads it takes some of them
    at a time (`bands.py`, `rolling.py`). own_rows: the same of a value that has its own memory. gradient_rows: as
    `pending_gradient`, but gives what writes some rows of the gradient.
    """

    buffer: TileBuffer
    needs: bool
    rectified: bool = False
    uses: int = 0
    grad: TileBuffer | None = None
    written: int = 0
    pending: Callable[[Value | None], None] | None = None
    pending_gradient: Callable[[], None] | None = None
    sums: TileBuffer | None = None
    summable: bool = False
    normalised: Normalised | None = None
    rewrite: Callable[[], None] | None = None
    donation: Callable[[], bool] | None = None
    owed: list[Callable[[], object]] = field(default_factory=list)
    half_gradient: bool = False
    any_halo: bool = False
    write_rows: WriteRows | None = None
    own_rows: WriteRows | None = None
    gradient_rows: Callable[[], WriteRows] | None = None
    dtype: torch.dtype = torch.float32


class View(NamedTuple):
    """A value as the network sees it: of its own shape, or flattened, or arranged otherwise."""

    value: Value
    flat: bool = False
    arranged: Arrangement | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the batch."""
        return self.arrangement.sizes[1:] if self.arranged is not None else self._plain_shape

    @property
    def arrangement(self) -> Arrangement:
        """Its dimensions, also where it is of its own shape or flattened."""
        return self.arranged if self.arranged is not None else plain_arrangement(self.value.buffer, self.flat)

    @property
    def _plain_shape(self) -> tuple[int, ...]:
        buffer = self.value.buffer
        return (buffer.features,) if self.flat else (buffer.channels, buffer.height, buffer.width)

    def of(self, value: Value) -> View:
        """Another value seen like this one, whose buffer has the same sides."""
        return self._replace(value=value)


def plain_arrangement(buffer: TileBuffer, flat: bool) -> Arrangement:
    """(batch, channels, height, width), or (batch, features)."""
    sides = zip((Side.CHANNEL, Side.ROW, Side.COLUMN), buffer.size, strict=True)
    each = [side(*both) for both in sides]
    batch = (Axis(Side.EXAMPLE, TRACED_BATCH),)
    return Arrangement((batch, merged([axis for one in each for axis in one])) if flat else (batch, *each))


def arranged_view(value: Value, arrangement: Arrangement) -> View:
    """A value as its arrangement has it: flattened or of its own shape where it is that."""
    for flat in (True, False):
        if arrangement == plain_arrangement(value.buffer, flat):
            return View(value, flat)
    return View(value, arranged=arrangement)
