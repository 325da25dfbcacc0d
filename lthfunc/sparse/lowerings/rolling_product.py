"""A convolution beside batch normalisations, whose rows roll (`rolling.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import GradientTarget, Operation
from lthfunc.sparse.kernels.instructions import BY_TILES, SUMS
from lthfunc.sparse.lowerings.banded import BandedProduct, InBands
from lthfunc.sparse.lowerings.convolution_lists import ConvolutionLists
from lthfunc.sparse.lowerings.made_rows import NormalisedGradientRows, NormalisedRows
from lthfunc.sparse.lowerings.product import Product, ProductLowering
from lthfunc.sparse.lowerings.product_columns import goes_past_caches, norm_columns, sums_at
from lthfunc.sparse.rolling import Rolling, rolling_of
from lthfunc.sparse.tile_buffers import Local, TileBuffer, no_buffer_of_kind
from lthfunc.sparse.views import Value


class RollingProduct(BandedProduct):
    """The instructions of a convolution: those of rolling rows where its image is made by batch normalisation, or the
    gradient of its outputs, and others where neither is."""

    _rolling: Rolling | None = None
    _image_rolls = False

    def takes_rolling(self, x: Value, lists: ConvolutionLists) -> bool:
        """Whether rows may roll, of an image that may be taken some rows at a time: where the gradients of the weights
        and of the image are wanted, and no bias's."""
        self._weights, (down, right) = lists, lists.sides
        learns = self.b.training and self.weight not in self.b.frozen and self._bias_gradient < 0
        if learns and x.needs:
            channels = max(lists.ins * lists.groups, lists.outs)
            self._rolling = rolling_of(channels, down.size, right.size, down.padding)
        return self._rolling is not None

    def rolls(self, operation: Operation) -> bool:
        """Whether the image's rows do."""
        return self._rolling is not None and not operation.fused and _rows_of(operation.inputs[0]) is not None

    def emit(
        self, operation: Operation, forward: Product, back: list[Product], in_bands: InBands | None = None
    ) -> None:
        """The layer's product, and what those of its gradient, `back`, need."""
        self._image_rolls = self.rolls(operation)
        if not self._image_rolls:
            super().emit(operation, forward, back, in_bands)
            return
        (self.x,), self.out = operation.inputs, operation.out
        self.out.summable = True
        self.b.hold(self.out.buffer)
        self._emit_products()
        self.x.own_rows = None
        self.b.backward.append(self.gradients)

    def _emit_products(self) -> None:
        rolling, rows, b, image = self._rolling, _rows_of(self.x), self.b, self.x.buffer
        assert rolling is not None
        assert rows is not None
        room, kept = rolling.hold(b, image.channels), self.x.own_rows is not None

        def late() -> Any:
            out, sums = self.out.buffer, self.out.sums
            return "rolling_products", BY_TILES, out.channels, {
                **rows.source.columns_of_kind("in"), "saved": rows.saved, "relu": int(self.x.rectified),
                **(no_buffer_of_kind("b") if rows.added is None else rows.added.columns_of_kind("b")),
                **(image.columns_of_kind("copy") if kept else no_buffer_of_kind("copy")),
                "copy_streamed": int(kept and goes_past_caches(b, image)), **room(), **self._lists_of_outputs(rolling),
                "values": b.leaves[self.weight].first, "bias": self._bias_at,
                **out.columns_of_kind("out"), **sums_at(sums),
                "streamed": int(sums is not None and goes_past_caches(b, out)),
            }  # fmt: skip

        b.emit(late)

    def gradients(self) -> None:
        """Of the weights, the bias and the input."""
        if self._rolling is None or not (self._image_rolls or self.out.gradient_rows):
            super().gradients()
            return
        if not self.out.needs:
            return
        b = self.b
        ProductLowering._write_input_again(self)  # numbers of 16 bits are read as they are
        rows: NormalisedGradientRows | None = None
        grad: TileBuffer | None = None
        if self.out.gradient_rows is not None:
            made = self.out.gradient_rows()
            assert isinstance(made, NormalisedGradientRows)
            rows = made
            self.out.grad = TileBuffer(*self.out.buffer.layout, local=Local.ROLLING)  # has no memory
        else:
            grad = b.gradient_of(self.out)
        target = b.target(self.x)
        if target.normalised is not None:
            target.normalised.summed = True
        self._emit_gradients(rows, grad, target)
        b.release(self.out)

    def _emit_gradients(
        self, rows: NormalisedGradientRows | None, grad: TileBuffer | None, target: GradientTarget
    ) -> None:
        b, x, norm, rolling = self.b, self.x, target.normalised, self._rolling
        assert rolling is not None
        room = rolling.hold(b, self.out.buffer.channels)
        lanes = b.hold(TileBuffer(b.weights[self.weight].survivors, 1, 1, local=Local.SUMS))
        made = x.write_rows if isinstance(x.write_rows, NormalisedRows) else None
        image, read = x.buffer if made is None else made.source, grad if rows is None else rows.grad
        assert read is not None

        def late() -> Any:
            sums = {name: at for name, at in norm_columns(norm).items() if name != "goes_on"}
            gate = None if norm is not None and norm.gates else target.gate
            return "rolling_gradients", SUMS, x.buffer.channels, {
                **(no_buffer_of_kind("in") if rows is None else rows.source.columns_of_kind("in")),
                "saved": -1 if rows is None else rows.saved, **read.columns_of_kind("grad"), **room(),
                **image.columns_of_kind("image"), "image_saved": -1 if made is None else made.saved,
                "image_relu": int(made is not None and x.rectified), **self._lists_of_image(rolling),
                "values": b.leaves[self.weight].first, "gradients": b.leaves[self.weight].first, "lanes": lanes.first,
                "lanes_tile": lanes.tile, **target.buffer.columns_of_kind("out"), "accumulate": int(target.accumulate),
                "gate": -1 if gate is None else gate.first, **sums,
            }  # fmt: skip

        b.emit(late)

    def _lists_of_outputs(self, rolling: Rolling) -> dict[str, int]:
        """Survivors in the order of the leaf, which is that of its rows and of what each reads."""
        row, channel, down, right = self._weights.reads(self._positions)
        ins = self._weights.ins
        return {
            **self._starts(rolling, row, self.out.buffer.channels, channel % ins, ins),
            "offsets": self.b.table(rolling.reads(channel, down, right)),
        }

    def _lists_of_image(self, rolling: Rolling) -> dict[str, int]:
        """Survivors by the channel of the image that they read, and then in the order of the leaf."""
        row, channel, down, right = self._weights.reads(self._positions)
        which, outs = torch.argsort(channel, stable=True), self._weights.outs // self._weights.groups
        row, channel = row[which], channel[which]
        # What reads a place of the image lies on the other side of it.
        down, right = 2 * rolling.halo - down[which], 2 * rolling.halo - right[which]
        return {
            **self._starts(rolling, channel, self.x.buffer.channels, row % outs, outs),
            "offsets": self.b.table(rolling.reads(row, down, right)), "which": self.b.table(which),
        }  # fmt: skip

    def _starts(self, rolling: Rolling, rows: Tensor, count: int, reads: Tensor, channels: int) -> dict[str, int]:
        """Where the list of each of `count` rows begins, block by block. reads: which of `channels` entries read."""
        blocks = rolling.blocks(len(rows), count, channels)
        lengths = torch.bincount(rows * blocks + reads * blocks // channels, minlength=count * blocks)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        return {"starts": self.b.table(starts), "blocks": blocks}


def _rows_of(x: Value) -> NormalisedRows | None:
    """What makes rows of a value, if batch normalisation does."""
    rows = x.write_rows if x.own_rows is None else x.own_rows
    return rows if isinstance(rows, NormalisedRows) else None
