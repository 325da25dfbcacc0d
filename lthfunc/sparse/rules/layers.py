"""Convolutions and linear layers: lists of surviving weights, and the same lists transposed for the gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, Value, View, Weights
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, SUMS
from lthfunc.sparse.patterns import Blocks, Entries, Lists, blocks_of, lists_of
from lthfunc.sparse.places import Place
from lthfunc.sparse.rules.interface import Param, Unsupported, argument, pair

#: Of a vector of 16 floats.
_BYTES = 64
#: What two rows of pooled outputs may read together: a little more than a first-level cache.
_NEAR_BYTES = 40 * 1024
#: Share of a linear layer's weights from which their gradients are computed densely (kernels/dense.cpp), and inputs that
#: this takes at a time.
_DENSE_FROM, _STRIP = 0.65, 64
#: Outputs that stay in registers (MOST_SUMS in kernels/vectors.h), and tiles that a linear layer takes at once.
_SUMS, _TILES_AT_ONCE = 16, 4


def linear(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """``x @ weight.T + bias`` on flattened values."""
    view, weight, bias = args[0], args[1], argument(args, 2, None)
    shape = b.weights[weight.name].shape
    if view.shape != (shape[1],):
        raise Unsupported("on more than one dimension of features")
    x = b.read(view)
    out = Value(b.place(shape[0]), needs=True, rectifiable=True)
    across = min(b.tiles, _TILES_AT_ONCE)

    def split(positions: Tensor) -> tuple[Tensor, Tensor]:
        return positions // shape[1], positions % shape[1]

    def forward() -> tuple[Entries, Blocks | None]:
        rows, inputs = split(b.weights[weight.name].positions)
        entries = Entries(shape[0], rows, x.place.addresses()[inputs])
        return entries, blocks_of(inputs, shape[1], shape[0], across * _BYTES)

    def backward(positions: Tensor) -> tuple[Entries, Blocks | None]:
        rows, inputs = split(positions)
        which = torch.arange(len(positions))
        entries = Entries(shape[1], inputs, out.place.addresses()[rows], which)
        return entries, blocks_of(rows, shape[0], shape[1], across * _BYTES)

    layer = _Layer(b, x, out, weight, bias, across)
    layer.forward(forward, _flat(x.place), _flat(out.place))
    b.backward.append(lambda: layer.gradients([(backward, _flat(out.place), _flat(x.place))]))
    return View(out, flat=True)


def convolution(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """conv2d with stride, padding, dilation and groups."""
    view, weight, bias = args[0], args[1], argument(args, 2, None)
    stride, dilation = pair(argument(args, 3, 1)), pair(argument(args, 5, 1))
    groups = int(argument(args, 6, 1))
    outs, ins, *kernel = b.weights[weight.name].shape
    if view.flat:
        raise Unsupported("on flattened values")
    padding = _padding(argument(args, 4, 0), kernel, dilation)
    x = b.read(view)
    sides = [
        _Side(size, k, s, p, d)
        for size, k, s, p, d in zip((x.place.height, x.place.width), kernel, stride, padding, dilation, strict=True)
    ]
    down, right = sides
    if down.out < 1 or right.out < 1:
        raise Unsupported("whose kernel is larger than its padded input")
    out = Value(b.place(outs, down.out, right.out), needs=True, rectifiable=True)
    x.place.halo = max(x.place.halo, *padding)
    if x.needs:
        out.place.halo = max(side.reach for side in sides)

    def split(positions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        row, rest = positions // (ins * kernel[0] * kernel[1]), positions % (ins * kernel[0] * kernel[1])
        channel, place = rest // (kernel[0] * kernel[1]), rest % (kernel[0] * kernel[1])
        return row, channel, place // kernel[1], place % kernel[1]

    def forward() -> tuple[Entries, Blocks | None]:
        row, channel, ky, kx = split(b.weights[weight.name].positions)
        place = x.place
        inputs = (row // (outs // groups) * ins + channel) * place.channel
        inputs = inputs + ky * dilation[0] * place.row + kx * dilation[1]
        width = min(right.out, _SUMS) * stride[1] + (kernel[1] - 1) * dilation[1]
        return Entries(outs, row, inputs), blocks_of(channel, ins, outs, kernel[0] * width * _BYTES)

    def backward(phase: tuple[int, int]) -> Any:
        """Of the input's places at this distance from a multiple of the stride."""

        def entries(positions: Tensor) -> tuple[Entries, Blocks | None]:
            row, channel, ky, kx = split(positions)
            steps = [a + side.padding - k * side.dilation for a, side, k in zip(phase, sides, (ky, kx), strict=True)]
            mine = ((steps[0] % stride[0] == 0) & (steps[1] % stride[1] == 0)).nonzero().flatten()
            row, channel, ky, kx = row[mine], channel[mine], ky[mine], kx[mine]
            up = steps[0][mine] // stride[0]
            place = out.place
            reads = row * place.channel + up * place.row + steps[1][mine] // stride[1]
            width = (min(right.out, _SUMS) + kernel[1] - 1) * _BYTES
            inputs, in_group = row // (outs // groups) * ins + channel, row % (outs // groups)
            blocks = None
            if stride == (1, 1):
                near = max(1, _NEAR_BYTES // (kernel[0] * width))
                for parts in {-(-(outs // groups) // near): 0, 1: 0}:  # in one part if smaller ones don't pay
                    part = in_group * parts // (outs // groups)
                    blocks = blocks or _windows(part, parts, ky, kx, sides, len(mine) / (ins * groups))
            if blocks is None:
                blocks = blocks_of(in_group, outs // groups, ins * groups, kernel[0] * width)
            return Entries(ins * groups, inputs, reads, mine), blocks

        return entries

    layer = _Layer(b, x, out, weight, bias, across=0)
    padded = _Walk(x.place, padding, stride, (down.out, right.out))
    # Two rows of outputs at once should find what they read in a near cache.
    near = ins * (kernel[0] + stride[0]) * (min(right.out, _SUMS) + kernel[1]) * _BYTES <= _NEAR_BYTES
    layer.forward(forward, padded, _plain(out.place), poolable=near)

    def gradients() -> None:
        # A stride makes as many kinds of input places, each with weights of its own; each kind is a product.
        phases = [(a, c) for a in range(min(stride[0], x.place.height)) for c in range(min(stride[1], x.place.width))]
        layer.gradients([
            (backward(phase), _plain(out.place), _Walk(x.place, (-phase[0], -phase[1]), stride, tuple(
                -(-(size - first) // step)
                for size, first, step in zip((x.place.height, x.place.width), phase, stride, strict=True)
            )))
            for phase in phases
        ])  # fmt: skip

    b.backward.append(gradients)
    return View(out)


class _Side:
    """The numbers of a convolution along one side."""

    def __init__(self, size: int, kernel: int, stride: int, padding: int, dilation: int) -> None:
        self.size, self.kernel, self.stride, self.padding, self.dilation = size, kernel, stride, padding, dilation
        self.out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1

    @property
    def reach(self) -> int:
        """Rows beyond the output's borders that the gradient of the input reads."""
        reach = 0
        for first in range(min(self.stride, self.size)):
            places = -(-(self.size - first) // self.stride)
            for k in range(self.kernel):
                step, rest = divmod(first + self.padding - k * self.dilation, self.stride)
                if rest == 0:
                    reach = max(reach, -step, step + places - self.out)
        return reach


class _Walk:
    """Places of an image that a product reads or writes: every `stride`-th from -padding on, so many down and right."""

    def __init__(
        self, place: Place, padding: tuple[int, int], stride: tuple[int, int], size: tuple[int, ...] | None
    ) -> None:
        self.place, self.padding, self.stride = place, padding, stride
        self.ny, self.nx = size or (1, 1)

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        place = self.place
        return {
            prefix: self.shifted(place.first),
            f"{prefix}_tile": place.tile,
            f"{prefix}_y": self.stride[0] * place.row,
            f"{prefix}_x": self.stride[1],
        }

    def shifted(self, first: int) -> int:
        """The first place, in a memory that begins there."""
        return first - self.padding[0] * self.place.row - self.padding[1]

    def rows(self) -> Tensor:
        """Vectors from the first place to each channel's."""
        return torch.arange(self.place.channels) * self.place.channel


class _Flat(_Walk):
    """The places of a flattened value are its tiles."""

    def columns(self, prefix: str) -> dict[str, int]:
        """Of an instruction."""
        return super().columns(prefix) | {f"{prefix}_x": self.place.tile}

    def rows(self) -> Tensor:
        """Vectors from the first place to each feature's."""
        return self.place.addresses()


def _plain(place: Place) -> _Walk:
    return _Walk(place, (0, 0), (1, 1), (place.height, place.width))


def _flat(place: Place) -> _Walk:
    return _Flat(place, (0, 0), (1, 1), None)


class _Layer:
    """What convolution and linear layers share: the instructions of a product and of its gradients."""

    def __init__(
        self, b: Builder, x: Value, out: Value, weight: Param, bias: Param | None, across: int
    ) -> None:
        self.b, self.x, self.out, self.across = b, x, out, across
        self.weight, self.bias = weight.name, bias.name if bias is not None else None
        self.lists: dict[str, int] = {}
        self.row_out = -1
        self.walk: tuple[_Walk, _Walk] | None = None
        self.pooled: Value | None = None
        self.codes: Place | None = None
        self.saved = -1

    @property
    def _bias_at(self) -> int:
        return self.b.leaves[self.bias].first if self.bias else -1

    def forward(self, entries: Any, walk_in: _Walk, walk_out: _Walk, *, poolable: bool = False) -> None:
        """The layer's product. poolable: it may give 2 × 2 maxima instead."""
        self.walk = walk_in, walk_out
        if poolable:
            self.out.pool = self._pool
        self.out.scale = self._scale

        def late() -> Any:
            if self._full:
                self.lists = self._lists(entries()[0], None)
                self.row_out = self.b.table(walk_out.rows())
                return self._dense_product(self.x.place, self.out.place, self.row_out, turned=False)
            made, blocks = entries()
            lists = self._lists(made, None if self.pooled is not None else blocks)
            self.lists = {name: lists[name] for name in ("starts", "offsets", "blocks")}
            self.row_out = self.b.table(walk_out.rows())
            walk, codes, row_out = walk_out, -1, self.row_out
            if self.pooled is not None:
                walk = _plain(self.pooled.place)
                codes = -1 if self.codes is None else self.codes.first
                row_out = self.b.table(walk.rows())
            return "products", BY_ROWS if self.across else BY_TILES, made.count, {
                **walk_in.columns("in"), **walk.columns("out"), "ny": walk.ny, "nx": walk.nx, **lists,
                "row_out": row_out, "values": self.b.leaves[self.weight].first, "bias": self._bias_at,
                "relu": int(self.out.rectified), "accumulate": 0, "gate": -1, "across": self.across,
                "pool": int(self.pooled is not None), "codes": codes, "saved": self.saved,
            }  # fmt: skip

        self.b.emit(late)

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
        assert pooled is not None and codes is not None
        grad, target = self.b.gradient_of(pooled), self.b.target(self.out)

        def late() -> Any:
            return "unpool", BY_TILES, grad.channels, {
                **grad.named("grad"), "height": grad.height, "width": grad.width, **codes.named("codes"),
                **target.place.named("into"),
            }  # fmt: skip

        self.b.emit(late)
        self.b.release(pooled)

    @property
    def _full(self) -> bool:
        """Whether it is a linear layer that has all its weights."""
        weights = self.b.weights[self.weight]
        return bool(self.across) and len(weights.positions) == math.prod(weights.shape)

    def _dense_product(
        self, source: Place, into: Place, rows: int, *, turned: bool, accumulate: int = 0, gate: int = -1
    ) -> Any:
        outs, ins = self.b.weights[self.weight].shape
        return "dense_products", BY_ROWS, ins if turned else outs, {
            "in": source.first, "in_tile": source.tile, "addresses": self.b.table(source.addresses()),
            "features": outs if turned else ins, "out": into.first, "out_tile": into.tile, "row_out": rows,
            "values": self.b.leaves[self.weight].first, "value_row": 1 if turned else ins,
            "value_step": ins if turned else 1, "bias": -1 if turned else self._bias_at,
            "relu": int(not turned and self.out.rectified), "accumulate": accumulate, "gate": gate,
        }  # fmt: skip

    def _lists(self, entries: Entries, blocks: Blocks | None) -> dict[str, int]:
        lists = lists_of(entries, blocks)
        limits = None if blocks is None else blocks.limits
        return {
            "starts": self.b.table(lists.starts), "offsets": self.b.table(lists.inputs * _BYTES),
            "which": -1 if lists.which is None else self.b.table(lists.which),
            "blocks": 1 if blocks is None else blocks.count,
            "limits": -1 if limits is None else self.b.table(limits.flatten()),
            "kernel_y": 0 if blocks is None else blocks.kernel_y,
            "kernel_x": 0 if blocks is None else blocks.kernel_x,
        }  # fmt: skip

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
        assert pooled is not None and codes is not None
        grad, target = self.b.gradient_of(pooled), self.b.target(self.out)

        def late() -> Any:
            return "unpool", BY_TILES, grad.channels, {
                **grad.named("grad"), "height": grad.height, "width": grad.width, **codes.named("codes"),
                **target.place.named("into"),
            }  # fmt: skip

        self.b.emit(late)
        self.b.release(pooled)

    def _inputs(self, lists: Lists) -> int:
        return self.b.table(lists.inputs * _BYTES)

    def _blocked(self, entries: Entries, blocks: Blocks | None) -> dict[str, int]:
        lists = lists_of(entries, blocks)
        limits = None if blocks is None else blocks.limits
        return {
            "starts": self.b.table(lists.starts), "offsets": self._inputs(lists),
            "which": -1 if lists.which is None else self.b.table(lists.which),
            "blocks": 1 if blocks is None else blocks.count,
            "limits": -1 if limits is None else self.b.table(limits.flatten()),
            "kernel_y": 0 if blocks is None else blocks.kernel_y,
            "kernel_x": 0 if blocks is None else blocks.kernel_x,
        }  # fmt: skip

    def gradients(self, products: list[tuple[Any, _Walk, _Walk]]) -> None:
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
        if self.across and len(weights.positions) >= _DENSE_FROM * math.prod(weights.shape):
            self._dense_weight_gradients(grad, weights)
            return
        walk_in, walk_out = self.walk

        def late() -> Any:
            return "weight_gradients", BY_ROWS if self.across else SUMS, weights.shape[0], {
                **walk_in.columns("in"), **_moved(walk_out, grad).columns("grad"),
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
                "starts": self.lists["starts"], "blocks": self.lists["blocks"], "columns": self.b.table(weights.positions % features),
                "row_grad": self.row_out, "gradients": self.b.leaves[self.weight].first, "bias": self._bias_at,
            }  # fmt: skip

        self.b.emit(turned)
        self.b.emit(late)

    def _input_gradient(self, lists: Any, walk_grad: _Walk, walk_into: _Walk, grad: Place, target: Any) -> None:
        def late() -> Any:
            if self._full:
                rows = self.b.table(self.x.place.addresses())
                return self._dense_product(grad, target.place, rows, turned=True, **target.columns)
            made, blocks = lists(self.b.weights[self.weight].positions)
            gate = -1 if target.gate is None else walk_into.shifted(target.gate.first)
            into = _moved(walk_into, target.place)
            return "products", BY_ROWS if self.across else BY_TILES, made.count, {
                **_moved(walk_grad, grad).columns("in"), **into.columns("out"),
                "ny": walk_into.ny, "nx": walk_into.nx, **self._lists(made, blocks),
                "row_out": self.b.table(into.rows()), "values": self.b.leaves[self.weight].first, "bias": -1,
                "relu": 0, "accumulate": int(target.accumulate), "gate": gate, "across": self.across, "pool": 0,
                "codes": -1, "saved": -1,
            }  # fmt: skip

        self.b.emit(late)


def _windows(
    part: Tensor, parts: int, ky: Tensor, kx: Tensor, sides: list[_Side], entries_each: float
) -> Blocks | None:
    """Blocks by kernel column and row, so that places outside the image are left out, if that pays.

    part: of the channels, so many that a near cache holds what they read. entries_each: of a row of the product.
    """
    limits, inside = [], 1.0
    for side in reversed(sides):
        steps = [side.padding - k * side.dilation for k in range(side.kernel)]
        each = [(max(0, -step), max(0, -step, min(side.size, side.out - step))) for step in steps]
        limits += each
        inside *= sum(last - first for first, last in each) / (side.kernel * side.size)
    # Sums are loaded and stored once for a kernel column, at the beginning, and at the end.
    if entries_each * (1 - inside) <= 2 * parts * sides[1].kernel + 4:
        return None
    number = (part * sides[1].kernel + kx) * sides[0].kernel + ky
    return Blocks(parts * sides[0].kernel * sides[1].kernel, number, torch.tensor(limits), sides[0].kernel, sides[1].kernel)


def _moved(walk: _Walk, place: Place) -> _Walk:
    """The same walk in another place of the same layout."""
    return type(walk)(place, walk.padding, walk.stride, (walk.ny, walk.nx))


def _padding(given: Any, kernel: list[int], dilation: tuple[int, int]) -> tuple[int, int]:
    if given == "valid":
        return 0, 0
    if given == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(each % 2 for each in total):
            raise Unsupported("with uneven padding")
        return total[0] // 2, total[1] // 2
    return pair(given)
