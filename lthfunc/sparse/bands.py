"""Images in bands of rows, so that what a convolution reads stays in a second-level cache.

A normalised value, or the gradient behind a normalisation, that a convolution alone reads is written a few rows at a
time, into memory of a band and the halo around it; the convolution's instructions follow for these rows, before the
next ones are written. Rows that the next band reads again are moved to its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lthfunc.sparse.builder import Builder
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, Local, TileBuffer
from lthfunc.sparse.views import WriteRows

#: Bytes of a band and its halo, at most: a second-level cache of 1 MB holds two beside what is written and read once.
#: An image of no more than two such bands is read faster as a whole, without rows that are moved.
_BAND_BYTES = 400 * 1024


class Band(NamedTuple):
    """Rows of an image. before: rows of the band before it, 0 for none; last: whether no other one follows."""

    first: int
    rows: int
    before: int
    last: bool


@dataclass(frozen=True)
class Bands:
    """Bands of an image. halo: rows and columns that are read around them. rows: of each but the last, which may have
    fewer."""

    height: int
    width: int
    halo: int
    rows: int

    def __iter__(self) -> Iterator[Band]:
        for first in range(0, self.height, self.rows):
            rows = min(self.rows, self.height - first)
            yield Band(first, rows, self.rows if first else 0, first + rows == self.height)

    def hold(self, b: Builder, channels: int, local: Local) -> TileBuffer:
        """Room for a band."""
        return b.hold(TileBuffer(channels, self.rows, self.width, self.halo, local=local))

    def fill(self, b: Builder, room: TileBuffer, band: Band, write: WriteRows) -> None:
        """Have a band written and its halo, where the last one that was written there is the band before."""
        halo = self.halo
        if halo and band.first == 0:
            b.fill(room.rows(-halo, halo))
        elif halo:
            b.copy(room.rows(band.before - halo, 2 * halo), room.rows(-halo, 2 * halo))
        begin, count = self.new_rows(band)
        if count:
            write(room.rows(begin - band.first, count), begin)
        beyond = band.first + band.rows + halo - self.height
        if beyond > 0:
            b.fill(room.rows(self.height - band.first, beyond))

    def new_rows(self, band: Band) -> tuple[int, int]:
        """The first row that is read for a band and was not for those before it, and how many there are."""
        begin = band.first + self.halo if band.first else 0
        return begin, max(0, min(self.height, band.first + band.rows + self.halo) - begin)


def bands_of(channels: int, height: int, width: int, halo: int) -> Bands | None:
    """How an image is divided; None where it is taken as a whole. channels: the most that are read."""
    row = channels * (width + 2 * halo) * VECTOR_BYTES
    if row * (height + 2 * halo) <= 2 * _BAND_BYTES:
        return None
    most = max(2 * halo, 1, _BAND_BYTES // row - 2 * halo)
    rows = -(-height // -(-height // most))
    rows = max(rows, 2 * halo)
    return Bands(height, width, halo, rows) if rows < height else None
