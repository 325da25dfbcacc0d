"""A convolution whose image, or the gradient of whose outputs, is written and read in bands of rows (`bands.py`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lthfunc.sparse.bands import Band, Bands
from lthfunc.sparse.builder import GradientTarget, Operation
from lthfunc.sparse.kernels.instructions import BY_TILES, SUMS
from lthfunc.sparse.lowerings.convolution_lists import ConvolutionLists
from lthfunc.sparse.lowerings.parameters import bias_gradients
from lthfunc.sparse.lowerings.product import Product, ProductLowering
from lthfunc.sparse.lowerings.product_columns import UNFUSED, norm_columns, sums_columns
from lthfunc.sparse.lowerings.strides import StridedRegion, plain
from lthfunc.sparse.tile_buffers import Local, TileBuffer
from lthfunc.sparse.views import WriteRows
from lthfunc.sparse.written import Late


class InBands(NamedTuple):
    """How a convolution takes bands: which, and its lists."""

    bands: Bands
    lists: ConvolutionLists


class BandedProduct(ProductLowering):
    """The instructions of a convolution, band by band where its image or its gradient is written so."""

    _widen: Callable[[], None] | None = None

    def emit(
        self, operation: Operation, forward: Product, back: list[Product], in_bands: InBands | None = None
    ) -> None:
        """The layer's product, and what those of its gradient, `back`, need."""
        self._in_bands = in_bands
        (self.x,), self.out = operation.inputs, operation.out
        if self._widen is not None:
            self._widen()
        if in_bands is None or (self._image_rows is None and self.x.own_rows is None):
            super().emit(operation, forward, back)
            return
        self.out.summable = True
        self.forward, self.back = forward, [(each, None) for each in back]
        self.b.hold(self.out.buffer)
        bands = in_bands.bands
        room = None
        if self._image_rows is not None:
            room = bands.hold(self.b, self.x.buffer.channels, Local.VALUE_BAND)
        for band in bands:
            self._write_image(bands, band, room)
            self.b.emit(self._product_of(band, room))
        self.x.own_rows = None
        self.b.backward.append(self.gradients)

    def widened(self, image: TileBuffer) -> TileBuffer:
        """Room for a tile of an image of 16 bits a number, which is copied there whenever the layer reads it."""
        room = self.b.hold(TileBuffer(*image.layout, local=Local.VALUE))
        self._widen = lambda: self.b.copy(image, room)
        return room

    def _write_input_again(self) -> None:
        if self._widen is not None:
            self._widen()
        super()._write_input_again()

    @property
    def _image_rows(self) -> WriteRows | None:
        """Writes rows of an image that has no memory of its own, or has 16 bits a number there."""
        if self.x.buffer.half:
            return lambda into, first: self.b.copy(self.x.buffer.rows(first, into.height), into)
        return self.x.write_rows

    def _write_image(self, bands: Bands, band: Band, room: TileBuffer | None) -> None:
        if self.x.own_rows is not None:
            first, count = bands.new_rows(band)
            if count:
                self.x.own_rows(self.x.buffer.rows(first, count), first)
        if room is not None and self._image_rows is not None:
            bands.fill(self.b, room, band, self._image_rows)

    def gradients(self) -> None:
        """Of the weights, the bias and the input."""
        if self._in_bands is None or (self._image_rows is None and self.out.gradient_rows is None):
            super().gradients()
            return
        if not self.out.needs:
            return
        b, bands, image, grad = self.b, self._in_bands.bands, None, None
        if self.out.gradient_rows is not None:
            write_gradient = self.out.gradient_rows()
            grad = self.out.grad = bands.hold(b, self.out.buffer.channels, Local.GRADIENT_BAND)
        if self._image_rows is not None:
            image = bands.hold(b, self.x.buffer.channels, Local.VALUE_BAND)
        else:
            self._write_input_again()
        learns = self.weight not in b.frozen
        if not learns and self._bias_gradient >= 0:
            bias_gradients(b, self._bias_gradient, b.gradient_of(self.out))
        sums = self._room_for_sums() if learns else None
        target = b.target(self.x) if self.x.needs else None
        if target is not None and target.normalised is not None:
            target.normalised.summed = True
        for band in bands:
            if grad is not None:
                bands.fill(b, grad, band, write_gradient)
            if sums is not None:
                self._write_image(bands, band, image)
                b.emit(self._weight_gradients_of(band, image, grad, sums))
            if target is not None:
                b.emit(self._input_gradient_of(band, grad, target))
        b.release(self.out)

    def _room_for_sums(self) -> TileBuffer:
        """For a tile's sums of weight gradients, and of the biases', from band to band."""
        biases = self.out.buffer.channels if self._bias_gradient >= 0 else 0
        return self.b.hold(TileBuffer(self.b.weights[self.weight].survivors + biases, 1, 1, local=Local.SUMS))

    def _image_of(self, band: Band, room: TileBuffer | None) -> StridedRegion:
        """The places of an image at which products begin to read for a band."""
        rows = self.x.buffer.rows(band.first, band.rows) if room is None else room.rows(0, band.rows)
        return StridedRegion(rows, self.forward.region_in.padding, (1, 1), (band.rows, rows.width))

    def _grad_of(self, band: Band, room: TileBuffer | None) -> StridedRegion:
        """The places of a band of the outputs' gradient."""
        if room is not None:
            return plain(room.rows(0, band.rows))
        return plain(self.b.gradient_of(self.out).rows(band.first, band.rows))

    def _product_of(self, band: Band, room: TileBuffer | None) -> Late:
        def late() -> Any:
            region_in, region_out = self._image_of(band, room), plain(self.out.buffer.rows(band.first, band.rows))
            rows, lists = self.b.shared(
                (self, "forward"), lambda: self._lists(self._in_lists.of_image(region_in.buffer, self.out.buffer))
            )
            self.lists = {name: lists[name] for name in ("starts", "offsets", "blocks")}
            self.row_out = self.b.shared((self, "row_out"), lambda: self.b.table(region_out.rows()))
            columns = {
                "row_out": self.row_out, "bias": self._bias_at, "relu": int(self.out.rectified), "accumulate": 0,
                "gate": -1, **UNFUSED, **sums_columns(self.out.sums), "goes_on": int(band.first > 0),
            }  # fmt: skip
            return self._products(rows, region_in, region_out, lists | columns)

        return late

    @property
    def _in_lists(self) -> ConvolutionLists:
        assert self._in_bands is not None
        return self._in_bands.lists

    def _weight_gradients_of(
        self, band: Band, image: TileBuffer | None, grad: TileBuffer | None, sums: TileBuffer
    ) -> Late:
        def late() -> Any:
            region_in, region_grad = self._image_of(band, image), self._grad_of(band, grad)
            columns = self._weight_gradients_columns(region_in, region_grad, self._grad_rows(region_grad))
            return "weight_gradients", SUMS if band.last else BY_TILES, self.dense.outs, {
                **columns, "sums": sums.first, "sums_tile": sums.tile, "goes_on": int(band.first > 0),
                "unfinished": int(not band.last),
            }  # fmt: skip

        return late

    def _grad_rows(self, region: StridedRegion) -> int:
        return self.b.shared((self, "row_grad"), lambda: self.b.table(region.rows()))

    def _input_gradient_of(self, band: Band, grad: TileBuffer | None, target: GradientTarget) -> Late:
        norm = target.normalised

        def late() -> Any:
            read, into = self._grad_of(band, grad), target.buffer.rows(band.first, band.rows)
            (product,) = self._in_lists.of_outputs(read.buffer, target.buffer)
            rows, lists = self.b.shared((self, "back"), lambda: self._lists(product))
            gate = -1 if target.gate is None else target.gate.rows(band.first, band.rows).first
            columns = {
                "row_out": self.b.shared((self, "back_out"), lambda: self.b.table(plain(into).rows())),
                "accumulate": int(target.accumulate), "gate": gate, "bias": -1, "relu": 0, **UNFUSED,
                **norm_columns(norm), "goes_on": int(band.first > 0),
            }  # fmt: skip
            if norm is not None:
                columns |= norm.value.buffer.rows(band.first, band.rows).columns_of_kind("norm")
                columns |= {"gate": -1} if norm.gates else {}
            return self._products(rows, read, plain(into), lists | columns)

        return late
