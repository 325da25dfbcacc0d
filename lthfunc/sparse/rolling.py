"""Images whose rows roll: what a convolution reads at once is made row by row, and stays in a cache.

How, and why, stands in kernels/rolling.h.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.build import have_avx512
from lthfunc.sparse.kernels.instructions import CONSTANTS
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, Local, TileBuffer

_COLUMNS = CONSTANTS["ROLLING_COLUMNS"]
#: Bytes that lists read in a block, at most, so that it stays in a first-level cache; and survivors that a row should
#: find there.
_NEAR_BYTES, _LEAST_ENTRIES = 31 * 1024, 16
#: Bytes of the rows that are read at once, at most: with more, a second-level cache holds little else.
_ROOM_BYTES = 512 * 1024


@dataclass(frozen=True)
class Rolling:
    """An image whose rows roll. halo: rows and columns that are read around each place."""

    height: int
    width: int
    halo: int

    @property
    def rows(self) -> int:
        """That are read at once."""
        return 2 * self.halo + 1

    @property
    def row(self) -> int:
        """Vectors of one, with the halo."""
        return self.width + 2 * self.halo

    def reads(self, channel: Tensor, down: Tensor, right: Tensor) -> Tensor:
        """Bytes into the room of what lies in a channel, so many rows and columns behind the first that is read around
        a place. int64 (rows · entries,): for the places of an image's first row, then of its second, and so on."""
        of_row = [(row - self.halo + down) % self.rows for row in range(self.rows)]
        return torch.cat([((channel * self.rows + at) * self.row + right) * VECTOR_BYTES for at in of_row])

    def blocks(self, entries: int, rows: int, channels: int) -> int:
        """Into how many blocks lists are divided that read so many channels each: what a block reads for a few columns
        stays in a first-level cache, but rows find enough survivors in it."""
        each = self.rows * (_COLUMNS + 2 * self.halo) * VECTOR_BYTES
        return max(1, min(-(-channels * each // _NEAR_BYTES), entries // max(1, rows * _LEAST_ENTRIES)))

    def hold(self, b: Builder, channels: int) -> Callable[[], dict[str, int]]:
        """Have room for rows of so many channels; gives the columns of an instruction that takes them, once memory is
        laid out."""
        room = b.hold(TileBuffer(channels, self.rows, self.row, local=Local.ROLLING))
        return lambda: {
            "channels": channels, "height": self.height, "width": self.width, "halo": self.halo, "room": room.first,
            "room_tile": room.tile,
        }  # fmt: skip


def rolling_of(channels: int, height: int, width: int, halo: int) -> Rolling | None:
    """How the rows of an image roll; None where that would not pay: without 32 registers of a whole vector, or where
    those of all channels are too much for a cache. channels: the most that are read."""
    if not have_avx512() or not 1 <= halo <= CONSTANTS["ROLLING_HALO"]:
        return None
    rolling = Rolling(height, width, halo)
    return rolling if channels * rolling.rows * rolling.row * VECTOR_BYTES <= _ROOM_BYTES else None
