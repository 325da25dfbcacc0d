"""Where activations lie: tiles of 16 examples, innermost, so that no lane ever depends on a mask."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from lthfunc.sparse.kernels.instructions import CONSTANTS

#: Examples in a tile.
LANES = CONSTANTS["LANES"]
VECTOR_BYTES = 4 * LANES


class Local(IntEnum):
    """What memory of one tile at a time holds: a value, or a gradient, or some rows of one (`bands.py`, `rolling.py`),
    or sums. Those of one kind and layout share it."""

    VALUE = 1
    GRADIENT = 2
    VALUE_BAND = 3
    GRADIENT_BAND = 4
    SUMS = 5
    ROLLING = 6


@dataclass(eq=False)
class TileBuffer:
    """A value of shape (channels, height, width) for each example: ``[tile][channel][row][column][16]``.

    halo: rows and columns of zeros around each channel, which padded convolutions read. It grows while a program is
    put together and is settled before memory is laid out. base: its first vector in the activations. local: it holds
    one tile at a time, for the instructions right behind the one that writes it. half: its numbers have 16 bits; steps
    and places, but for `base` and `vectors`, then count vectors of half the size.
    """

    channels: int
    height: int
    width: int
    halo: int = 0
    base: int = -1
    local: Local | None = field(default=None, kw_only=True)
    half: bool = field(default=False, kw_only=True)

    @property
    def row(self) -> int:
        """Vectors from one row to the next."""
        return self.width + 2 * self.halo

    @property
    def channel(self) -> int:
        """Vectors from one channel to the next.

        An odd number for sequences: with a multiple of 64, the same place of all channels would share one set of a
        first-level cache, which holds a dozen of them.
        """
        plane = (self.height + 2 * self.halo) * self.row
        return plane + (self.height == 1 and self.width > 1 and plane % 2 == 0)

    @property
    def tile(self) -> int:
        """Vectors from one tile to the next."""
        return 0 if self.local else self.vectors * (1 + self.half)

    @property
    def vectors(self) -> int:
        """Vectors of a tile, of whole size."""
        return -(-self.channels * self.channel // (1 + self.half))

    @property
    def size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        return self.channels, self.height, self.width

    @property
    def sides(self) -> dict[str, int]:
        """Its height and width, as columns of an instruction."""
        return {"height": self.height, "width": self.width}

    @property
    def layout(self) -> tuple[int, int, int, int]:
        """What two buffers must share for an address in one to mean the same in the other."""
        return *self.size, self.halo

    @property
    def first(self) -> int:
        """The vector of channel 0, row 0, column 0 in the first tile."""
        return self.base * (1 + self.half) + self.halo * (self.row + 1)

    @property
    def features(self) -> int:
        """Numbers for each example."""
        return self.channels * self.height * self.width

    def rows(self, first: int, count: int) -> Rows:
        """Some of its rows, from -halo on."""
        return Rows(self, first, count)

    def addresses(self) -> Tensor:
        """int64 (features,): vectors from `first` to each feature, in the order of a flattened value; to be read."""
        return _addresses(self.layout)

    def columns(self, prefix: str) -> dict[str, int]:
        """The columns that describe it in an instruction that knows whole numbers alone, but for its size."""
        if self.half:
            raise ValueError(f"no instruction with {prefix!r} alone reads or writes numbers of 16 bits")
        return self._columns(prefix)

    def columns_of_kind(self, prefix: str) -> dict[str, int]:
        """The columns that describe it in an instruction that knows numbers of both kinds."""
        return self._columns(prefix) | {f"{prefix}_half": int(self.half)}

    def _columns(self, prefix: str) -> dict[str, int]:
        return {
            prefix: self.first,
            f"{prefix}_tile": self.tile,
            f"{prefix}_channel": self.channel,
            f"{prefix}_row": self.row,
        }


@functools.lru_cache(maxsize=64)  # a program asks for each several times, and so do those of later masks
def _addresses(layout: tuple[int, int, int, int]) -> Tensor:
    buffer = TileBuffer(*layout)
    channels = torch.arange(buffer.channels) * buffer.channel
    rows = torch.arange(buffer.height) * buffer.row
    return (channels[:, None, None] + rows[:, None] + torch.arange(buffer.width)).flatten()


class SameLayout(TileBuffer):
    """A buffer of the same layout as another one, also where that one's halo grows."""

    def __init__(self, other: TileBuffer) -> None:
        super().__init__(other.channels, other.height, other.width)
        self._other = other

    @property
    def halo(self) -> int:
        """The other one's."""
        return self._other.halo

    @halo.setter
    def halo(self, halo: int) -> None:
        """Nothing: it is the other one's."""


class Rows(SameLayout):
    """Some rows of another buffer, as a buffer that lies there."""

    def __init__(self, other: TileBuffer, first: int, count: int) -> None:
        super().__init__(other)
        self.height, self.half, self.local, self._first = count, other.half, other.local, first

    @property
    def row(self) -> int:
        """The other one's."""
        return self._other.row

    @property
    def channel(self) -> int:
        """The other one's."""
        return self._other.channel

    @property
    def tile(self) -> int:
        """The other one's."""
        return self._other.tile

    @property
    def first(self) -> int:
        """The vector of column 0 in the first of these rows."""
        return self._other.first + self._first * self.row


def no_buffer(prefix: str) -> dict[str, int]:
    """The columns of a buffer that is not there."""
    return {prefix: -1, f"{prefix}_tile": 0, f"{prefix}_channel": 0, f"{prefix}_row": 0}


def no_buffer_of_kind(prefix: str) -> dict[str, int]:
    """The same where the columns say which kind of numbers it holds."""
    return {**no_buffer(prefix), f"{prefix}_half": 0}
