"""The product of a layer: its lists, its instruction, and those of its gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lthfunc.hardware import has_wide_amd_cores
from lthfunc.sparse.builder import Builder, Value, Weights
from lthfunc.sparse.kernels.build import have_avx512
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, SUMS
from lthfunc.sparse.patterns import Blocks, Entries, lists_of
from lthfunc.sparse.places import LANES, VECTOR_BYTES, Place, nowhere
from lthfunc.sparse.rules.interface import Param, claim
from lthfunc.sparse.rules.walks import Walk, moved, plain

#: Share of a linear layer's weights from which their gradients, and its products too, are computed densely
#: (kernels/dense.cpp). Lists feed wide multipliers less well than dense products do, and without AVX-512 survivors are
#: spread out and picked one by one.
_GRADIENTS_FROM, _PRODUCTS_FROM = (0.88, 1.0)
if have_avx512():
    _GRADIENTS_FROM, _PRODUCTS_FROM = (0.42, 0.55) if has_wide_amd_cores() else (0.65, 0.72)
#: Inputs that a dense gradient takes at a time, and tiles that a dense product does.
_STRIP, _TILES = 64, 4


class Layer:
    """What convolution and linear layers share: the instructions of a product and of its gradients."""

    def __init__(self, b: Builder, x: Value, out: Value, weight: Param, bias: Param | None, across: int) -> None:
        claim(b, weight, bias)
        self.b, self.x, self.out, self.across = b, x, out, across
        self.weight, self.bias = weight.name, bias.name if bias is not None else None
        self.lists: dict[str, int] = {}
        self.survivors: dict[str, int] = {}
        self.spread: Place | None = None
        self.row_out = -1
        self.walk: tuple[Walk, Walk] | None = None
        self.pooled: Value | None = None
        self.codes: Place | None = None
        self.saved = -1
        self.added: Place | None = None
        self.writes: Any = None

    @property
    def _bias_at(self) -> int:
        return self.b.leaves[self.bias].first if self.bias else -1

    def forward(self, entries: Any, walk_in: Walk, walk_out: Walk, *, poolable: bool = False) -> None:
        """The layer's product. poolable: it may give 2 × 2 maxima instead."""
        self.walk = walk_in, walk_out
        if poolable:
            self.out.pool = self._pool
        if not self._dense:
            self.out.scale = self._scale
        if not (self.b.training or self.across):
            self.out.add = self._add

        if self._dense and not self._full:
            self._spread_weights()

        def late() -> Any:
            if self._dense:
                self.row_out = self.b.table(walk_out.rows())
                return self._dense_product(self.x.place, self.out.place, self.row_out, turned=False)
            made, blocks = entries()
            lists = self._lists(made, None if self.pooled is not None else blocks)
            self.lists = {name: lists[name] for name in ("starts", "offsets", "blocks")}
            self.row_out = self.b.table(walk_out.rows())
            walk, codes, row_out = walk_out, -1, self.row_out
            if self.pooled is not None:
                walk = plain(self.pooled.place)
                codes = -1 if self.codes is None else self.codes.first
                row_out = self.b.table(walk.rows())
            return "products", BY_ROWS if self.across else BY_TILES, made.outputs, {
                **walk_in.columns("in"), **walk.columns("out"), "ny": walk.ny, "nx": walk.nx, **lists,
                "row_out": row_out, "values": self.b.leaves[self.weight].first, "bias": self._bias_at,
                "relu": int(self.out.rectified), "accumulate": 0, "gate": -1, "across": self.across,
                "pool": int(self.pooled is not None), "codes": codes, "saved": self.saved,
                **(nowhere("b") if self.added is None else self.added.named("b")),
            }  # fmt: skip

        self.b.emit(late)
        self.writes = late

    def _add(self, other: Place) -> bool:
        """Add what is written by now as the product is written, if nothing came between and it is no maximum."""
        if self.b.instructions[-1] is not self.writes or self.pooled is not None:
            return False
        self.added = other
        self.out.pool = None
        return True

    def _scale(self, saved: int) -> None:
        self.saved = saved

    def _pool(self, pooled: Value) -> bool:
        """Write 2 × 2 maxima into this value; the outputs themselves are kept nowhere."""
        b, out = self.b, self.out
        self.pooled = pooled
        b.places.remove(out.place)
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

    @property
    def _share(self) -> float:
        """Of its weights that survive; all, where it has none."""
        weights = self.b.weights[self.weight]
        every = math.prod(weights.shape)
        return len(weights.positions) / every if every else 1.0

    @property
    def _full(self) -> bool:
        """Whether it is a linear layer that has all its weights."""
        return bool(self.across) and self._share == 1

    @property
    def _dense(self) -> bool:
        """Whether its products are dense ones."""
        enough = bool(self.across) and self._share >= _PRODUCTS_FROM
        return self._full or (enough and self.b.tiles >= _TILES)

    def _spread_weights(self) -> None:
        outs, ins = self.b.weights[self.weight].shape
        vectors = outs * -(-ins // LANES)
        room = self.spread = self.b.place(-(-vectors // self.b.tiles))  # row after row, whatever a tile is

        def late() -> Any:
            return "spread_weights", BY_ROWS, outs, {
                "values": self.b.leaves[self.weight].first, **self._survivors(), "out": room.first,
            }  # fmt: skip

        self.b.emit(late)

    def _survivors(self) -> dict[str, int]:
        """Tables of each row's first survivor, and of which weights of 16 survive, so many numbers a row."""
        if not self.survivors:
            outs, ins = self.b.weights[self.weight].shape
            kept = torch.zeros(outs * ins, dtype=torch.int64)
            kept[self.b.weights[self.weight].positions] = 1
            rows = F.pad(kept.view(outs, ins), (0, -ins % LANES))
            starts = F.pad(rows.sum(1).cumsum(0), (1, 0))
            bits = (rows.view(-1, LANES) << torch.arange(LANES)).sum(1)
            tables = {"starts": self.b.table(starts), "bits": self.b.table(bits)}
            self.survivors = {**tables, "words": rows.shape[1] // LANES}
        return self.survivors

    def _dense_product(
        self, source: Place, into: Place, rows: int, *, turned: bool, accumulate: int = 0, gate: int = -1
    ) -> Any:
        outs, ins = self.b.weights[self.weight].shape
        width = ins if self.spread is None else self._survivors()["words"] * LANES
        return "dense_products", BY_ROWS, ins if turned else outs, {
            "in": source.first, "in_tile": source.tile, "addresses": self.b.table(source.addresses()),
            "features": outs if turned else ins, "out": into.first, "out_tile": into.tile, "row_out": rows,
            "values": self.b.leaves[self.weight].first, "spread": -1 if self.spread is None else self.spread.first,
            "value_row": 1 if turned else width, "value_step": width if turned else 1,
            "bias": -1 if turned else self._bias_at,
            "relu": int(not turned and self.out.rectified), "accumulate": accumulate, "gate": gate,
        }  # fmt: skip

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

    def gradients(self, products: list[tuple[Any, Walk, Walk]]) -> None:
        """Of the weights, the bias and, by these products, of the input."""
        grad = self.b.gradient_of(self.out)
        self._weight_gradients(grad)
        if self.x.needs:
            target = self.b.target(self.x)
            for lists, walk_grad, walk_into in products:
                self._input_gradient(lists, walk_grad, walk_into, grad, target)
        self.b.release(self.out)

    def _weight_gradients(self, grad: Place) -> None:
        assert self.walk is not None
        weights = self.b.weights[self.weight]
        if self.across and (self._dense or self._share >= _GRADIENTS_FROM):
            self._dense_weight_gradients(grad, weights)
            return
        walk_in, walk_out = self.walk

        def late() -> Any:
            return "weight_gradients", BY_ROWS if self.across else SUMS, weights.shape[0], {
                **walk_in.columns("in"), **moved(walk_out, grad).columns("grad"),
                "ny": walk_out.ny, "nx": walk_out.nx, **self.lists,
                "row_grad": self.row_out,
                "gradients": self.b.leaves[self.weight].first, "bias": self._bias_at, "across": self.across,
            }  # fmt: skip

        self.b.emit(late)

    def _dense_weight_gradients(self, grad: Place, weights: Weights) -> None:
        x, features = self.x.place, weights.shape[1]
        strips = -(-features // _STRIP)
        width = strips * _STRIP
        room = self.b.place(width)  # as many numbers, example after example

        def turned() -> Any:
            return "by_example", BY_ROWS, -(-features // 16), {
                "in": x.first, "in_tile": x.tile, "addresses": self.b.table(x.addresses()), "features": features,
                "out": room.first, "width": width,
            }  # fmt: skip

        def late() -> Any:
            return "dense_weight_gradients", BY_ROWS, weights.shape[0], {
                "in": room.first, "width": width, "features": features, "grad": grad.first, "grad_tile": grad.tile,
                **self._survivors(), "row_grad": self.row_out,
                "gradients": self.b.leaves[self.weight].first, "bias": self._bias_at,
            }  # fmt: skip

        self.b.emit(turned)
        self.b.emit(late)

    def _input_gradient(self, lists: Any, walk_grad: Walk, walk_into: Walk, grad: Place, target: Any) -> None:
        def late() -> Any:
            if self._dense:
                rows = self.b.table(self.x.place.addresses())
                return self._dense_product(grad, target.place, rows, turned=True, **target.columns)
            made, blocks = lists(self.b.weights[self.weight].positions)
            gate = -1 if target.gate is None else walk_into.shifted(target.gate.first)
            into = moved(walk_into, target.place)
            return "products", BY_ROWS if self.across else BY_TILES, made.outputs, {
                **moved(walk_grad, grad).columns("in"), **into.columns("out"),
                "ny": walk_into.ny, "nx": walk_into.nx, **self._lists(made, blocks),
                "row_out": self.b.table(into.rows()), "values": self.b.leaves[self.weight].first, "bias": -1,
                "relu": 0, "accumulate": int(target.accumulate), "gate": gate, "across": self.across, "pool": 0,
                "codes": -1, "saved": -1, **nowhere("b"),
            }  # fmt: skip

        self.b.emit(late)
