"""The product of a layer: its lists or its dense weights, its instruction, and those of its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, Step, Target, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, SUMS
from lthfunc.sparse.lowerings.dense import DenseWeights, Turned
from lthfunc.sparse.lowerings.interface import Param, claim
from lthfunc.sparse.lowerings.strides import Walk, moved, plain
from lthfunc.sparse.patterns import Blocks, Entries, lists_of
from lthfunc.sparse.tile_buffers import VECTOR_BYTES, Place, nowhere

#: From weights, by where they lie in the flattened leaf, to what a product's rows read.
Listed = Callable[[Tensor], tuple[Entries, "Blocks | None"]]


class Back(NamedTuple):
    """A product of a layer's gradient. inside: the share of its work that lists do, leaving out the image's outside."""

    listed: Listed
    walk_grad: Walk
    walk_into: Walk
    inside: float = 1.0


class Layer:
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
        self.walk: tuple[Listed, Walk, Walk] | None = None
        self.back: list[tuple[Back, Turned | None]] = []
        self.pooled: Value | None = None
        self.codes: Place | None = None
        self.saved = -1
        self.added: Place | None = None
        self.writes: Any = None

    @property
    def _bias_at(self) -> int:
        return self.b.leaves[self.bias].first if self.bias else -1

    @property
    def _positions(self) -> Tensor:
        return self.b.weights[self.weight].positions

    def forward(
        self, listed: Listed, walk_in: Walk, walk_out: Walk, back: list[Back], *, poolable: bool = False
    ) -> None:
        """The layer's product, and what those of its gradient, `back`, need. poolable: lists may give 2 × 2 maxima."""
        self.walk = listed, walk_in, walk_out
        linear, places = bool(self.across), walk_out.ny * walk_out.nx
        if linear:
            self.is_dense, self.gradients_dense = self.dense.makes_products, self.dense.makes_gradients
        elif not self.grouped:
            self.is_dense = self.dense.makes_convolutions(places)
            self.gradients_dense = self.dense.makes_convolution_gradients(places)
        steps = self.out.steps
        if poolable or (self.is_dense and not linear):
            steps[Step.MAXIMA] = self._pool
        if not (linear and self.is_dense):
            steps[Step.NORMALISE] = self._scale
        if not (self.b.training or linear):
            steps[Step.ADD] = self._add
        self.back = [(each, self._turned(each)) for each in back]
        if self.is_dense:
            self.dense.spread(first=not linear)

        def late() -> Any:
            self.row_out = self.b.table(walk_out.rows())
            if linear and self.is_dense:
                return self.dense.product(
                    self.x.place, self.out.place, self.row_out, turned=False, bias=self._bias_at,
                    relu=int(self.out.rectified), accumulate=0, gate=-1,
                )  # fmt: skip
            walk, codes, row_out = walk_out, -1, self.row_out
            if self.pooled is not None:
                walk = plain(self.pooled.place)
                codes = -1 if self.codes is None else self.codes.first
                row_out = self.b.table(walk.rows())
            columns = {
                "row_out": row_out, "bias": self._bias_at, "relu": int(self.out.rectified), "accumulate": 0,
                "gate": -1, "pool": int(self.pooled is not None), "codes": codes, "saved": self.saved,
                **(nowhere("b") if self.added is None else self.added.named("b")),
            }  # fmt: skip
            if self.is_dense:
                return self.dense.convolution(self._reads(), walk_in, walk, **columns)
            made, blocks = listed(self._positions)
            lists = self._lists(made, None if self.pooled is not None else blocks)
            self.lists = {name: lists[name] for name in ("starts", "offsets", "blocks")}
            return self._products(made, walk_in, walk, lists, columns)

        self.b.emit(late)
        self.writes = late

    def _reads(self) -> dict[str, int]:
        """What each row of a dense convolution reads, and each of its gradients."""
        assert self.walk is not None
        if not self.reads:
            self.reads = self.dense.reads(self.walk[0](torch.arange(self.dense.ins))[0].inputs)
        return self.reads

    def _turned(self, back: Back) -> Turned | None:
        """The weights for a dense product of the gradient, where it is one."""
        if not (self.is_dense and self.b.training and self.x.needs) or self.across:
            return None
        if not self.dense.makes_convolutions(back.walk_into.ny * back.walk_into.nx, back.inside):
            return None
        entries, step = len(self._first_row(back)[1]), self.dense.ins // self.x.place.channels
        return self.dense.turned(lambda: self._first_row(back)[1], entries, step) if entries else None

    def _first_row(self, back: Back) -> tuple[Tensor, Tensor]:
        """What the transpose's first row reads, and the weights for it, by where they lie in the flattened leaf."""
        step = self.dense.ins // self.x.place.channels
        positions = (torch.arange(self.dense.outs)[:, None] * self.dense.ins + torch.arange(step)).flatten()
        made, _ = back.listed(positions)
        assert made.which is not None
        # In the order of memory, which is the reverse of the weights': the other way round, a processor guesses badly
        # what will be read next, and takes up to twice as long.
        order = torch.argsort(made.inputs)
        return made.inputs[order], positions[made.which[order]]

    def _products(
        self, made: Entries, walk_in: Walk, walk_out: Walk, lists: dict[str, int], columns: dict[str, int]
    ) -> Any:
        return "products", BY_ROWS if self.across else BY_TILES, made.outputs, {
            **walk_in.columns("in"), **walk_out.columns("out"), "ny": walk_out.ny, "nx": walk_out.nx, **lists,
            "values": self.b.leaves[self.weight].first, "across": self.across, **columns,
        }  # fmt: skip

    def _add(self, other: View) -> bool:
        """Add what is written by now as the product is written, if nothing came between."""
        if self.b.instructions[-1] is not self.writes or other.value.pending is not None:
            return False
        self.added = self.b.read(other).place
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
        b.places[b.places.index(out.place)] = pooled.place
        out.uses += 1
        if b.training:
            # Beside the maxima, so of their layout, whatever reads them.
            self.codes = b.beside(pooled.place)
        b.backward.append(self._unpool)
        return True

    def _unpool(self) -> None:
        pooled, codes = self.pooled, self.codes
        assert pooled is not None
        assert codes is not None
        grad, target = self.b.gradient_of(pooled), self.b.target(self.out)

        def late() -> Any:
            return "unpool", BY_TILES, grad.channels, {
                **grad.named("grad"), "height": grad.height, "width": grad.width, **codes.named("codes"),
                **target.place.named("into"),
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
            for back, turned in self.back:
                self._input_gradient(back, turned, grad, target)
        self.b.release(self.out)

    def _weight_gradients(self, grad: Place) -> None:
        assert self.walk is not None
        _, walk_in, walk_out = self.walk
        if self.across and self.gradients_dense:
            self.dense.gradients(self.x.place, grad, lambda: self.row_out, self._bias_at)
            return

        def late() -> Any:
            walk_grad = moved(walk_out, grad)
            if self.gradients_dense:
                return self.dense.convolution_gradients(
                    self._reads(), walk_in, walk_grad, self.row_out, self._bias_at
                )  # fmt: skip
            return "weight_gradients", BY_ROWS if self.across else SUMS, self.dense.outs, {
                **walk_in.columns("in"), **walk_grad.columns("grad"), "ny": walk_out.ny, "nx": walk_out.nx,
                **self.lists, "row_grad": self.row_out, "gradients": self.b.leaves[self.weight].first,
                "bias": self._bias_at, "across": self.across,
            }  # fmt: skip

        self.b.emit(late)

    def _input_gradient(self, back: Back, turned: Turned | None, grad: Place, target: Target) -> None:
        def late() -> Any:
            if self.across and self.is_dense:
                rows = self.b.table(self.x.place.addresses())
                return self.dense.product(grad, target.place, rows, turned=True, bias=-1, relu=0, **target.columns)
            into, walk_grad = moved(back.walk_into, target.place), moved(back.walk_grad, grad)
            columns = {
                "row_out": self.b.table(into.rows()), "accumulate": int(target.accumulate),
                "gate": -1 if target.gate is None else back.walk_into.shifted(target.gate.first), "bias": -1,
                "relu": 0, "pool": 0, "codes": -1, "saved": -1, **nowhere("b"),
            }  # fmt: skip
            if turned is not None:
                return turned.convolution(self.dense.reads(self._first_row(back)[0]), walk_grad, into, **columns)
            made, blocks = back.listed(self._positions)
            return self._products(made, walk_grad, into, self._lists(made, blocks), columns)

        self.b.emit(late)
