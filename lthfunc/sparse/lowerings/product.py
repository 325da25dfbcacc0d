"""The product of a layer: its lists or its dense weights, its instruction, and those of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, FusedStep, GradientTarget, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, SUMS
from lthfunc.sparse.lowerings.dense import DenseWeights, TransposedWeights
from lthfunc.sparse.lowerings.interface import Param, claim
from lthfunc.sparse.lowerings.strides import StridedRegion, moved, plain
from lthfunc.sparse.patterns import Blocks, Entries, lists_of
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, TileBuffer, no_buffer

#: From weights, by where they lie in the flattened leaf, to what a product's rows read.
EntriesOf = Callable[[Tensor], tuple[Entries, "Blocks | None"]]


class InputGradient(NamedTuple):
    """A product of a layer's gradient. inside: the share of its work that lists do, leaving out the image's outside."""

    entries_of: EntriesOf
    region_grad: StridedRegion
    region_into: StridedRegion
    inside: float = 1.0


class ProductLowering:
    """What convolution and linear layers share: the instructions of a product and of its gradients.

    across: of a linear layer, how many tiles it takes at once; 0 for a convolution. grouped: whether it is one whose
    rows read different channels.
    """

    def __init__(
        self, b: Builder, x: Value, out: Value, weight: Param, bias: Param | None, across: int, *, grouped: bool = False
    ) -> None:
        claim(b, weight, bias)
        self.b, self.x, self.out, self.across, self.grouped = b, x, out, across, grouped
        self.weight, self.bias = weight.name, bias.name if bias is not None else None
        self.dense = DenseWeights(b, weight.name)
        self.is_dense = self.gradients_dense = False
        self.reads: dict[str, int] = {}
        self.lists: dict[str, int] = {}
        self.row_out = -1
        self.region: tuple[EntriesOf, StridedRegion, StridedRegion] | None = None
        self.back: list[tuple[InputGradient, TransposedWeights | None]] = []
        self.pooled: Value | None = None
        self.codes: TileBuffer | None = None
        self.saved = -1
        self.added: TileBuffer | None = None
        self.writes: Any = None

    @property
    def _bias_at(self) -> int:
        return self.b.leaves[self.bias].first if self.bias else -1

    @property
    def _positions(self) -> Tensor:
        return self.b.weights[self.weight].positions

    def forward(
        self,
        entries_of: EntriesOf,
        region_in: StridedRegion,
        region_out: StridedRegion,
        back: list[InputGradient],
        *,
        poolable: bool = False,
    ) -> None:
        """The layer's product, and what those of its gradient, `back`, need. poolable: lists may give 2 × 2 maxima."""
        self.region = entries_of, region_in, region_out
        linear, positions = bool(self.across), region_out.ny * region_out.nx
        if linear:
            self.is_dense, self.gradients_dense = self.dense.makes_products, self.dense.makes_gradients
        elif not self.grouped:
            self.is_dense = self.dense.makes_convolutions(positions)
            self.gradients_dense = self.dense.makes_convolution_gradients(positions)
        steps = self.out.steps
        if poolable or (self.is_dense and not linear):
            steps[FusedStep.MAXIMA] = self._pool
        if not (linear and self.is_dense):
            steps[FusedStep.NORMALISE] = self._scale
        if not (self.b.training or linear):
            steps[FusedStep.ADD] = self._add
        self.back = [(each, self._transposed(each)) for each in back]
        if self.is_dense:
            self.dense.spread(first=not linear)

        def late() -> Any:
            self.row_out = self.b.table(region_out.rows())
            if linear and self.is_dense:
                return self.dense.product(
                    self.x.buffer, self.out.buffer, self.row_out, transposed=False, bias=self._bias_at,
                    relu=int(self.out.rectified), accumulate=0, gate=-1,
                )  # fmt: skip
            region, codes, row_out = region_out, -1, self.row_out
            if self.pooled is not None:
                region = plain(self.pooled.buffer)
                codes = -1 if self.codes is None else self.codes.first
                row_out = self.b.table(region.rows())
            columns = {
                "row_out": row_out, "bias": self._bias_at, "relu": int(self.out.rectified), "accumulate": 0,
                "gate": -1, "pool": int(self.pooled is not None), "codes": codes, "saved": self.saved,
                **(no_buffer("b") if self.added is None else self.added.columns("b")),
            }  # fmt: skip
            if self.is_dense:
                return self.dense.convolution(self._reads(), region_in, region, **columns)
            made, blocks = entries_of(self._positions)
            lists = self._lists(made, None if self.pooled is not None else blocks)
            self.lists = {name: lists[name] for name in ("starts", "offsets", "blocks")}
            return self._products(made, region_in, region, lists, columns)

        self.b.emit(late)
        self.writes = late

    def _reads(self) -> dict[str, int]:
        """What each row of a dense convolution reads, and each of its gradients."""
        assert self.region is not None
        if not self.reads:
            self.reads = self.dense.reads(self.region[0](torch.arange(self.dense.ins))[0].inputs)
        return self.reads

    def _transposed(self, back: InputGradient) -> TransposedWeights | None:
        """The weights for a dense product of the gradient, where it is one."""
        if not (self.is_dense and self.b.training and self.x.needs) or self.across:
            return None
        if not self.dense.makes_convolutions(back.region_into.ny * back.region_into.nx, back.inside):
            return None
        entries, step = len(self._first_row(back)[1]), self.dense.ins // self.x.buffer.channels
        return self.dense.transposed(lambda: self._first_row(back)[1], entries, step) if entries else None

    def _first_row(self, back: InputGradient) -> tuple[Tensor, Tensor]:
        """What the transpose's first row reads, and the weights for it, by where they lie in the flattened leaf."""
        step = self.dense.ins // self.x.buffer.channels
        positions = (torch.arange(self.dense.outs)[:, None] * self.dense.ins + torch.arange(step)).flatten()
        made, _ = back.entries_of(positions)
        assert made.which is not None
        # In the order of memory, which is the reverse of the weights': the other way round, a processor guesses badly
        # what will be read next, and takes up to twice as long.
        order = torch.argsort(made.inputs)
        return made.inputs[order], positions[made.which[order]]

    def _products(
        self,
        made: Entries,
        region_in: StridedRegion,
        region_out: StridedRegion,
        lists: dict[str, int],
        columns: dict[str, int],
    ) -> Any:
        return "products", BY_ROWS if self.across else BY_TILES, made.outputs, {
            **region_in.columns("in"), **region_out.columns("out"), "ny": region_out.ny, "nx": region_out.nx, **lists,
            "values": self.b.leaves[self.weight].first, "across": self.across, **columns,
        }  # fmt: skip

    def _add(self, other: View) -> bool:
        """Add what is written by now as the product is written, if nothing came between."""
        if self.b.instructions[-1] is not self.writes or other.value.pending is not None:
            return False
        self.added = self.b.read(other).buffer
        return True

    def _scale(self, saved: int) -> bool:
        self.saved = saved
        return True

    def _pool(self, pooled: Value) -> bool:
        """Write 2 × 2 maxima into this value, but of no sum; the outputs themselves are kept nowhere."""
        b, out = self.b, self.out
        if self.added is not None:
            return False
        self.pooled = pooled
        b.tile_buffers[b.tile_buffers.index(out.buffer)] = pooled.buffer
        out.uses += 1
        if b.training:
            # Beside the maxima, so of their layout, whatever reads them.
            self.codes = b.same_layout(pooled.buffer)
        b.backward.append(self._unpool)
        return True

    def _unpool(self) -> None:
        pooled, codes = self.pooled, self.codes
        assert pooled is not None
        assert codes is not None
        grad, target = self.b.gradient_of(pooled), self.b.target(self.out)

        def late() -> Any:
            return "unpool", BY_TILES, grad.channels, {
                **grad.columns("grad"), "height": grad.height, "width": grad.width, **codes.columns("codes"),
                **target.buffer.columns("into"),
            }  # fmt: skip

        self.b.emit(late)
        self.b.release(pooled)

    def _lists(self, entries: Entries, blocks: Blocks | None) -> dict[str, int]:
        lists = lists_of(entries, blocks)
        limits = None if blocks is None else blocks.limits
        return {
            "starts": self.b.table(lists.starts), "offsets": self.b.table(lists.inputs * VECTOR_BYTES),
            "which": -1 if lists.which is None else self.b.table(lists.which),
            "blocks": 1 if blocks is None else blocks.total,
            "limits": -1 if limits is None else self.b.table(limits.flatten()),
            "kernel_y": 0 if blocks is None else blocks.kernel_y,
            "kernel_x": 0 if blocks is None else blocks.kernel_x,
        }  # fmt: skip

    def gradients(self) -> None:
        """Of the weights, the bias and the input."""
        grad = self.b.gradient_of(self.out)
        self._weight_gradients(grad)
        if self.x.needs:
            target = self.b.target(self.x)
            for back, transposed in self.back:
                self._input_gradient(back, transposed, grad, target)
        self.b.release(self.out)

    def _weight_gradients(self, grad: TileBuffer) -> None:
        assert self.region is not None
        _, region_in, region_out = self.region
        if self.across and self.gradients_dense:
            self.dense.gradients(self.x.buffer, grad, lambda: self.row_out, self._bias_at)
            return

        def late() -> Any:
            region_grad = moved(region_out, grad)
            if self.gradients_dense:
                return self.dense.convolution_gradients(
                    self._reads(), region_in, region_grad, self.row_out, self._bias_at
                )  # fmt: skip
            return "weight_gradients", BY_ROWS if self.across else SUMS, self.dense.outs, {
                **region_in.columns("in"), **region_grad.columns("grad"), "ny": region_out.ny, "nx": region_out.nx,
                **self.lists, "row_grad": self.row_out, "gradients": self.b.leaves[self.weight].first,
                "bias": self._bias_at, "across": self.across,
            }  # fmt: skip

        self.b.emit(late)

    def _input_gradient(
        self, back: InputGradient, transposed: TransposedWeights | None, grad: TileBuffer, target: GradientTarget
    ) -> None:
        def late() -> Any:
            if self.across and self.is_dense:
                rows = self.b.table(self.x.buffer.addresses())
                return self.dense.product(grad, target.buffer, rows, transposed=True, bias=-1, relu=0, **target.columns)
            into, region_grad = moved(back.region_into, target.buffer), moved(back.region_grad, grad)
            columns = {
                "row_out": self.b.table(into.rows()), "accumulate": int(target.accumulate),
                "gate": -1 if target.gate is None else back.region_into.shifted(target.gate.first), "bias": -1,
                "relu": 0, "pool": 0, "codes": -1, "saved": -1, **no_buffer("b"),
            }  # fmt: skip
            if transposed is not None:
                return transposed.convolution(self.dense.reads(self._first_row(back)[0]), region_grad, into, **columns)
            made, blocks = back.entries_of(self._positions)
            return self._products(made, region_grad, into, self._lists(made, blocks), columns)

        self.b.emit(late)
