"""Layers that have most of their weights, computed as dense ones: pruned weights are zeros among the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.hardware import has_wide_amd_cores
from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.build import have_avx512
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, CONSTANTS, SUMS
from lthfunc.sparse.lowerings.strides import StridedRegion
from lthfunc.sparse.tile_buffers import LANES, VECTOR_BYTES, TileBuffer

#: Share of a layer's weights from which it is computed densely: gradients of a linear layer's weights, its products
#: (kernels/dense_products.cpp), and convolutions (kernels/dense_convolutions.cpp). Lists feed wide multipliers less
#: well than dense products do. Without AVX-512 survivors are spread out and picked one by one, and 16 registers of half
#: the width hold too few sums for convolutions (0.7 times the rate of lists).
GRADIENTS_FROM, PRODUCTS_FROM, CONVOLUTIONS_FROM = (0.88, 1.0, math.inf)
if have_avx512():
    GRADIENTS_FROM, PRODUCTS_FROM, CONVOLUTIONS_FROM = (0.42, 0.55, 0.6) if has_wide_amd_cores() else (0.65, 0.72, 0.9)
_TILES, _STRIP = CONSTANTS["TILES_AT_ONCE"], CONSTANTS["STRIP"]
#: Rows of a convolution, output positions in all tiles, and weights of a row below which lists are as fast.
_ROWS, _PLACES, _ENTRIES = 16, 32, 64
#: Places of an image up to which gradients of weights are summed up over all tiles at once, so that lanes are added up
#: once for many positions. Larger images are taken tile by tile, while they lie in a cache.
_SMALL = 16


def feeds_multipliers(outs: int, ins: int) -> bool:
    """Whether a convolution of `outs` rows of `ins` weights each is large enough to be computed densely."""
    return outs >= _ROWS and ins >= _ENTRIES


class DenseWeights:
    """A layer's weights, pruned ones among them, and the instructions that read all of them.

    outs, ins: rows and columns of the matrix that they are. share: of the weights that survive; all, where it has none.
    """

    def __init__(self, b: Builder, name: str) -> None:
        self._b, self._name = b, name
        shape = b.weights[name].shape
        self.outs, self.ins = shape[0], math.prod(shape[1:])
        every = self.outs * self.ins
        self.share = b.weights[name].survivors / every if every else 1.0
        self._spread: TileBuffer | None = None

    @property
    def full(self) -> bool:
        """Whether all survive."""
        return self.share == 1

    @property
    def makes_products(self) -> bool:
        """Whether a linear layer's products are dense ones."""
        return self.full or (self.share >= PRODUCTS_FROM and self._b.tiles >= _TILES)

    @property
    def makes_gradients(self) -> bool:
        """Whether the gradients of a linear layer's weights are."""
        return self.makes_products or self.share >= GRADIENTS_FROM

    def makes_convolution_gradients(self, positions: int, inside: float = 1.0) -> bool:
        """Whether the gradients of a convolution's weights are. inside: the share of its work that lists do at all."""
        many = self.outs >= _ROWS and positions * self._b.tiles >= _PLACES
        return many and self.share * inside >= CONVOLUTIONS_FROM

    def makes_convolutions(self, positions: int, inside: float = 1.0) -> bool:
        """Whether its products are. One tile does not pay for spreading survivors out."""
        pays = feeds_multipliers(self.outs, self.ins) and (self.full or self._b.tiles > 1)
        return pays and self.makes_convolution_gradients(positions, inside)

    def spread(self, *, first: bool = False) -> None:
        """Spread survivors out among zeros, before the products that follow or, `first`, before everything."""
        if self.full:
            return
        room = self._spread = self._room(self.outs * -(-self.ins // LANES))

        (self._b.emit_first if first else self._b.emit)(lambda: (
            "spread_weights", BY_ROWS, self.outs, {"values": self._values, **self._survivors(), "out": room.first}
        ))  # fmt: skip

    def _room(self, vectors: int) -> TileBuffer:
        """For numbers row after row, whatever a tile is."""
        return self._b.allocate(-(-vectors // self._b.tiles))

    @property
    def _values(self) -> int:
        return self._b.leaves[self._name].first

    @property
    def _columns(self) -> dict[str, int]:
        return {"values": self._values, "spread": -1 if self._spread is None else self._spread.first}

    @property
    def table(self) -> dict[str, int]:
        """Where all weights lie, row after row, as columns of an instruction. To be asked for after `spread`."""
        return {**self._columns, "value_row": self._row}

    @property
    def _row(self) -> int:
        """Numbers from a row to the next."""
        return self.ins if self._spread is None else -(-self.ins // LANES) * LANES

    def _survivors(self) -> dict[str, int]:
        """Tables of each row's first survivor, and of which weights of 16 survive (`words` masks a row)."""

        def tables() -> dict[str, int]:
            lists = RowMasks(self.outs, self.ins)
            starts = self._b.survivor_lists(self._name, lists)
            return {"starts": starts, "bits": starts + lists.lengths[0], "words": lists.words}

        return self._b.shared((self, "survivors"), tables)

    # ---- linear layers ----

    def product(self, source: TileBuffer, into: TileBuffer, row_out: int, *, transposed: bool, **columns: int) -> Any:
        """Of a linear layer, or of its transpose."""
        return "dense_products", BY_ROWS, self.ins if transposed else self.outs, {
            "in": source.first, "in_tile": source.tile, "addresses": self._b.table(source.addresses()),
            "features": self.outs if transposed else self.ins, "out": into.first, "out_tile": into.tile,
            "row_out": row_out, **self._columns, "value_row": 1 if transposed else self._row,
            "value_step": self._row if transposed else 1, **columns,
        }  # fmt: skip

    def gradients(self, x: TileBuffer, grad: TileBuffer, row_grad: Callable[[], int], bias: int) -> None:
        """Of a linear layer's surviving weights, from its inputs example by example."""
        width = -(-self.ins // _STRIP) * _STRIP
        room = self._b.allocate(width)

        self._b.emit(lambda: ("by_example", BY_ROWS, -(-self.ins // LANES), {
            "in": x.first, "in_tile": x.tile, "addresses": self._b.table(x.addresses()), "features": self.ins,
            "out": room.first, "width": width,
        }))  # fmt: skip
        self._b.emit(lambda: ("dense_weight_gradients", BY_ROWS, self.outs, {
            "in": room.first, "width": width, "features": self.ins, "grad": grad.first, "grad_tile": grad.tile,
            **self._survivors(), "row_grad": row_grad(), "gradients": self._values, "bias": bias,
        }))  # fmt: skip

    # ---- convolutions ----

    def reads(self, inputs: Tensor) -> dict[str, int]:
        """The columns of what every row reads, in vectors from its first position on."""
        return {"offsets": self._b.table(inputs * VECTOR_BYTES), "entries": len(inputs)}

    def convolution(
        self, reads: dict[str, int], region_in: StridedRegion, region_out: StridedRegion, **columns: int
    ) -> Any:
        """Of weights row by row."""
        return _convolution(self.outs, region_in, region_out, {
            **reads, **self.table, **columns,
        })  # fmt: skip

    def transposed(self, which: Callable[[], Tensor], entries: int, step: int) -> TransposedWeights:
        """The transpose, made before everything; to be asked for before `spread`, which then comes first.

        which: for its first row, where in the flattened leaf each of `entries` weights lies, once halos are known.
        step: numbers from there to the next row's.
        """
        rows = self.ins // step
        room = self._room(-(-rows * entries // LANES))

        def late() -> Any:
            at = which()
            positions = at // self.ins * self._row + at % self.ins
            return "transpose_weights", BY_ROWS, rows, {
                **self._columns, "from": self._b.table(positions), "entries": entries, "step": step, "out": room.first,
            }  # fmt: skip

        self._b.emit_first(late)
        return TransposedWeights(room, rows)

    def convolution_gradients(
        self, reads: dict[str, int], region_in: StridedRegion, region_grad: StridedRegion, row_grad: int, bias: int
    ) -> Any:
        """Of the surviving weights."""
        count = region_grad.ny * region_grad.nx
        positions = torch.stack([region_in.positions(), region_grad.positions()], 1) * VECTOR_BYTES
        return "dense_convolution_gradients", BY_ROWS if count <= _SMALL else SUMS, self.outs, {
            "in": region_in.shifted(region_in.buffer.first), "in_tile": region_in.buffer.tile,
            "grad": region_grad.shifted(region_grad.buffer.first), "grad_tile": region_grad.buffer.tile,
            "places": self._b.table(positions.flatten()), "count": count,
            **reads,
            "channel_bytes": region_in.buffer.channel * VECTOR_BYTES,
            "channel_entries": self.ins // region_in.buffer.channels, **self._survivors(), "row_grad": row_grad,
            "gradients": self._values, "bias": bias,
        }  # fmt: skip


class RowMasks(NamedTuple):
    """The first survivor of each row of a matrix, counted from its first on, and which weights of 16 survive."""

    rows: int
    columns: int

    @property
    def words(self) -> int:
        """Numbers that say so of a row."""
        return -(-self.columns // LANES)

    @property
    def lengths(self) -> tuple[int, int]:
        """Of both lists."""
        return self.rows + 1, self.rows * self.words

    def write(self, positions: Tensor, into: Tensor) -> Tensor:
        """Write both, as `SurvivorLists` says."""
        kept = torch.zeros(self.rows * self.columns, dtype=torch.int64).index_fill_(0, positions, 1)
        rows = F.pad(kept.view(self.rows, self.columns), (0, -self.columns % LANES))
        starts, bits = into.split(self.lengths)
        starts[0] = 0
        starts[1:] = rows.sum(1).cumsum(0)
        bits.copy_((rows.view(-1, LANES) << torch.arange(LANES)).sum(1))
        return into


class TransposedWeights(NamedTuple):
    """A convolution's weights as those of its transpose: `rows` rows in a room of their own."""

    room: TileBuffer
    rows: int

    def convolution(
        self, reads: dict[str, int], region_in: StridedRegion, region_out: StridedRegion, **columns: int
    ) -> Any:
        """The transposed product."""
        return _convolution(self.rows, region_in, region_out, {
            **reads, "values": -1, "spread": self.room.first, "value_row": reads["entries"], **columns,
        })  # fmt: skip


def _convolution(rows: int, region_in: StridedRegion, region_out: StridedRegion, columns: dict[str, int]) -> Any:
    return "dense_convolutions", BY_TILES, rows, {
        **region_in.columns("in"), **region_out.columns("out"), "ny": region_out.ny, "nx": region_out.nx, **columns,
    }  # fmt: skip
