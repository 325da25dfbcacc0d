"""The product of a layer: its lists or its dense weights, its instruction, and those of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, FusedStep, GradientTarget, Operation, Value
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, SUMS
from lthfunc.sparse.lowerings.dense import DenseWeights, TransposedWeights
from lthfunc.sparse.lowerings.interface import WHOLE_SUMS, Param, claim, gradient_at, value_at
from lthfunc.sparse.lowerings.parameters import bias_gradients
from lthfunc.sparse.lowerings.product_columns import UNFUSED, norm_columns, streamed_columns, sums_columns
from lthfunc.sparse.lowerings.strides import StridedRegion, TokensRegion, moved, plain
from lthfunc.sparse.lowerings.whole_layers import gradients_of_rows
from lthfunc.sparse.patterns import Blocks, Entries, MatrixLists, lists_of
from lthfunc.sparse.tile_buffers import TileBuffer, no_buffer

#: From weights, by where they lie in the flattened leaf, to what a product's rows read.
EntriesOf = Callable[[Tensor], tuple[Entries, "Blocks | None"]]


class Product(NamedTuple):
    """A product of a layer, or of its gradient: where what its rows read lies, where it goes, and which that is.

    entries_of: of a convolution; lists_of: of a linear layer, by its survivors' number. inside: the share of its
    work that lists do, leaving out the image's outside.
    """

    region_in: StridedRegion
    region_out: StridedRegion
    entries_of: EntriesOf | None = None
    inside: float = 1.0
    lists_of: Callable[[int], MatrixLists] | None = None

    def entries(self, positions: Tensor) -> tuple[Entries, Blocks | None]:
        """What a convolution's rows read."""
        assert self.entries_of is not None
        return self.entries_of(positions)


class ProductLowering:
    """What convolution and linear layers share: the instructions of a product and of its gradients.

    across: of a linear layer, how many tiles it takes at once; 0 for a convolution. positions: of an image of outputs.
    groups: of channels, which rows read one of. poolable: whether lists may give 2 × 2 maxima. learns: whether it has
    gradients of its own.
    """

    def __init__(
        self,
        b: Builder,
        weight: Param,
        bias: Param | None,
        across: int,
        positions: int,
        *,
        groups: int = 1,
        poolable: bool = False,
    ) -> None:
        self.learns = claim(b, weight, bias)
        self.b, self.across, self.groups = b, across, groups
        self.weight, self._bias_at, self._bias_gradient = weight.name, value_at(b, bias), gradient_at(b, bias)
        self.dense = DenseWeights(b, weight.name)
        self.is_dense = self.gradients_dense = False
        if across:
            self.is_dense, self.gradients_dense = self.dense.makes_products, self.dense.makes_gradients
        elif groups == 1:
            self.is_dense = self.dense.makes_convolutions(positions)
            self.gradients_dense = self.dense.makes_convolution_gradients(positions)
        self.poolable = poolable or (self.is_dense and not across)
        self.lists: dict[str, int] = {}
        self.row_out = -1
        self.x: Value
        self.out: Value
        self.forward: Product
        self.back: list[tuple[Product, TransposedWeights | None]]

    @property
    def accepts(self) -> frozenset[FusedStep]:
        """What the product can do as it writes its outputs."""
        steps = {FusedStep.RECTIFY}
        if self.poolable:
            steps.add(FusedStep.MAXIMA)
        if not (self.across and self.is_dense):
            steps.add(FusedStep.NORMALISE)
        if not self.across:
            steps.add(FusedStep.ADD)
        return frozenset(steps)

    @property
    def by_lists(self) -> bool:
        """Whether it is a convolution whose products and gradients go by lists of survivors, tile by tile."""
        return not (self.across or self.is_dense or self.gradients_dense)

    @property
    def _positions(self) -> Tensor:
        return self.b.positions_of(self.weight)

    def emit(self, operation: Operation, forward: Product, back: list[Product]) -> None:
        """The layer's product, and what those of its gradient, `back`, need."""
        (self.x,), self.out, fused = operation.inputs, operation.out, operation.fused
        self.out.summable = self.by_lists and FusedStep.MAXIMA not in fused
        self.forward, (region_in, region_out, *_) = forward, forward
        self.b.hold(fused[FusedStep.MAXIMA].out.buffer if FusedStep.MAXIMA in fused else self.out.buffer)
        self.back = [(each, self._transposed(each)) for each in back]
        if self.is_dense:
            self.dense.spread(first=not self.across)

        def late() -> Any:
            self.row_out = self.b.table(region_out.rows())
            if self.across and self.is_dense:
                return self.dense.product(
                    self.x.buffer, self.out.buffer, self.row_out, transposed=False, bias=self._bias_at,
                    relu=int(self.out.rectified), accumulate=0, gate=-1,
                )  # fmt: skip
            region, codes, row_out, maxima = region_out, -1, self.row_out, fused.get(FusedStep.MAXIMA)
            if maxima is not None:
                region = plain(maxima.out.buffer)
                codes = -1 if maxima.kept is None else maxima.kept.first
                row_out = self.b.table(region.rows())
            normalised, addition = fused.get(FusedStep.NORMALISE), fused.get(FusedStep.ADD)
            columns = {
                "row_out": row_out, "bias": self._bias_at, "relu": int(self.out.rectified), "accumulate": 0,
                "gate": -1, "pool": int(maxima is not None), "codes": codes,
                "saved": -1 if normalised is None else normalised.kept,
                **(no_buffer("b") if addition is None else addition.inputs[0].buffer.columns("b")),
            }  # fmt: skip
            sums = self.out.sums if self.out.summable else None
            if self.is_dense:
                return self.dense.convolution(self._reads(), region_in, region, **columns)
            rows, lists = self._lists(forward, in_blocks=maxima is None)
            self.lists = {name: lists[name] for name in ("starts", "offsets", "blocks")}
            return self._products(rows, region_in, region, lists | columns | sums_columns(sums))

        self.b.emit(late)
        self.b.backward.append(self.gradients)

    def _reads(self) -> dict[str, int]:
        """What each row of a dense convolution reads, and each of its gradients."""

        def reads() -> dict[str, int]:
            return self.dense.reads(self.forward.entries(torch.arange(self.dense.ins))[0].inputs)

        return self.b.shared((self, "reads"), reads)

    def _transposed(self, back: Product) -> TransposedWeights | None:
        """The weights for a dense product of the gradient, where it is one."""
        if not (self.is_dense and self.b.training and self.x.needs) or self.across:
            return None
        if not self.dense.makes_convolutions(back.region_out.ny * back.region_out.nx, back.inside):
            return None
        entries, step = len(self._first_row(back)[1]), self.dense.ins // self.x.buffer.channels
        return self.dense.transposed(lambda: self._first_row(back)[1], entries, step) if entries else None

    def _first_row(self, back: Product) -> tuple[Tensor, Tensor]:
        """What the transpose's first row reads, and the weights for it, by where they lie in the flattened leaf."""
        step = self.dense.ins // self.x.buffer.channels
        positions = (torch.arange(self.dense.outs)[:, None] * self.dense.ins + torch.arange(step)).flatten()
        made, _ = back.entries(positions)
        assert made.which is not None
        # In the order of memory, which is the reverse of the weights': the other way round, a processor guesses badly
        # what will be read next, and takes up to twice as long.
        order = torch.argsort(made.inputs)
        return made.inputs[order], positions[made.which[order]]

    def _products(self, rows: int, region_in: StridedRegion, region_out: StridedRegion, columns: dict[str, int]) -> Any:
        if isinstance(region_in, TokensRegion) and isinstance(region_out, TokensRegion):
            region_in, region_out = region_in.pieces, region_out.pieces
            row = region_out.columns("out")["out_y"]  # what lies beside the outputs is taken in pieces as well
            columns = columns | {"b_row": row, "norm_row": row}
        return "products", BY_ROWS if self.across else BY_TILES, rows, {
            **region_in.columns("in"), **region_out.columns("out"), "ny": region_out.ny, "nx": region_out.nx,
            "values": self.b.leaves[self.weight].first, "across": self.across, **columns, "out_half": region_out.half,
            **streamed_columns(columns, self.b, self.out.buffer),
        }  # fmt: skip

    def _lists(self, product: Product, *, in_blocks: bool = True) -> tuple[int, dict[str, int]]:
        """(how many rows have lists, the columns that describe them)."""
        if product.lists_of is not None:
            matrix = product.lists_of(self.b.weights[self.weight].survivors)
            columns = self.b.matrix_lists(self.weight, matrix)
            return matrix.rows, {**columns, "limits": -1, "kernel_y": 0, "kernel_x": 0}
        made, blocks = product.entries(self._positions)
        blocks = blocks if in_blocks else None
        lists = lists_of(made, blocks)
        limits = None if blocks is None else blocks.limits
        return lists.rows, {
            "starts": self.b.table(lists.starts), "offsets": self.b.table(lists.offsets),
            "which": -1 if lists.which is None else self.b.table(lists.which), "blocks": lists.blocks,
            "limits": -1 if limits is None else self.b.table(limits.flatten()),
            "kernel_y": 0 if blocks is None else blocks.kernel_y, "kernel_x": 0 if blocks is None else blocks.kernel_x,
        }  # fmt: skip

    def gradients(self) -> None:
        """Of the weights, the bias and the input."""
        if not self.out.needs:
            return
        grad = self.b.gradient_of(self.out)
        self._write_input_again()
        if self.weight not in self.b.frozen:
            self._weight_gradients(grad)
        elif self._bias_gradient >= 0:
            bias_gradients(self.b, self._bias_gradient, grad)
        if self.x.needs:
            target = self.b.target(self.x)
            for back, transposed in self.back:
                self._input_gradient(back, transposed, grad, target)
        self.b.release(self.out)

    def _write_input_again(self) -> None:
        """Where its input lies in local memory."""
        if self.x.rewrite is not None:
            self.x.rewrite()

    def _whole_layer(self, grad: TileBuffer) -> Any:
        """The gradients of all weights, pruned ones among them."""
        (region_in, region_out, *_), outs, ins = self.forward, self.dense.outs, self.dense.ins
        if self.across:
            reads = region_in.buffer.addresses()
        else:
            firsts = torch.arange(self.groups) * (outs // self.groups) * ins
            reads = self.forward.entries((firsts[:, None] + torch.arange(ins)).flatten())[0].inputs
        places = {
            **region_in.columns("in"), **moved(region_out, grad).columns("grad"), "ny": region_out.ny,
            "nx": region_out.nx,
        }  # fmt: skip
        return gradients_of_rows(
            self.b, places, reads, region_out.rows(), columns=ins, groups=self.groups, across=self.across
        )

    def _weight_gradients(self, grad: TileBuffer) -> None:
        region_in, region_out, *_ = self.forward
        self.b.whole_layer(self.weight, lambda: self._whole_layer(grad))
        if self.across and self.gradients_dense:
            self.dense.gradients(self.x.buffer, grad, lambda: self.row_out, self._bias_gradient)
            return

        def late() -> Any:
            region_grad = moved(region_out, grad)
            if self.gradients_dense:
                return self.dense.convolution_gradients(
                    self._reads(), region_in, region_grad, self.row_out, self._bias_gradient
                )  # fmt: skip
            columns = self._weight_gradients_columns(region_in, region_grad, self.row_out)
            return "weight_gradients", BY_ROWS if self.across else SUMS, self.dense.outs, columns | WHOLE_SUMS

        self.b.emit(late)

    def _weight_gradients_columns(
        self, region_in: StridedRegion, region_grad: StridedRegion, row_grad: int
    ) -> dict[str, int]:
        """By lists, but for the sums that go on from one instruction to another."""
        return {
            **region_in.columns("in"), **region_grad.columns("grad"), "ny": region_grad.ny, "nx": region_grad.nx,
            **self.lists, "row_grad": row_grad, "gradients": self.b.leaves[self.weight].first,
            "bias": self._bias_gradient, "across": self.across,
        }  # fmt: skip

    def _input_gradient(
        self, back: Product, transposed: TransposedWeights | None, grad: TileBuffer, target: GradientTarget
    ) -> None:
        norm = target.normalised
        if norm is not None and self.sums_gradients(back):
            norm.summed = True
        else:
            norm = None

        def late() -> Any:
            if self.across and self.is_dense:
                rows = self.b.table(self.x.buffer.addresses())
                return self.dense.product(grad, target.buffer, rows, transposed=True, bias=-1, relu=0, **target.columns)
            into, region_grad = moved(back.region_out, target.buffer), moved(back.region_in, grad)
            columns = {
                "row_out": self.b.table(into.rows()), "accumulate": int(target.accumulate),
                "gate": -1 if target.gate is None else back.region_out.shifted(target.gate.first), "bias": -1,
                "relu": 0, **UNFUSED,
            }  # fmt: skip
            if transposed is not None:
                return transposed.convolution(self.dense.reads(self._first_row(back)[0]), region_grad, into, **columns)
            rows, lists = self._lists(back)
            if norm is not None and norm.gates:
                columns["gate"] = -1
            return self._products(rows, region_grad, into, lists | columns | norm_columns(norm))

        self.b.emit(late)

    @property
    def takes_local_gradient(self) -> bool:
        """Whether it reads its gradient tile by tile. What sums up a bias's alone takes all tiles at once."""
        return self.by_lists and (self.weight not in self.b.frozen or self._bias_gradient < 0)

    def sums_gradients(self, back: Product) -> bool:
        """Whether the product of a gradient writes all of it, and can sum it up for a batch normalisation."""
        return self.by_lists and len(self.back) == 1 and back.region_out.stride == (1, 1)
