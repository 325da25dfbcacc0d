"""Convolutions and linear layers: lists of surviving weights, and the same lists transposed for the gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, Value, View
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, EITHER
from lthfunc.sparse.patterns import Lists, block_size, lists_of
from lthfunc.sparse.places import Place
from lthfunc.sparse.rules.interface import Param, Unsupported, argument, pair

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

    def blocks(inputs: Tensor, count: int, rows: int) -> tuple[Tensor, int]:
        size = block_size(count, across * 64, len(inputs) / max(1, count * rows))
        return inputs // size, -(-count // size)

    def forward() -> Lists:
        rows, inputs = split(b.weights[weight.name].positions)
        return lists_of(rows, x.place.addresses()[inputs], shape[0], *blocks(inputs, shape[1], shape[0]))

    def backward(positions: Tensor) -> Lists:
        rows, inputs = split(positions)
        return lists_of(inputs, out.place.addresses()[rows], shape[1], *blocks(rows, shape[0], shape[1]))

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

    def block_of(channel: Tensor, count: int, width: int, rows: int) -> tuple[Tensor, int]:
        each = len(channel) / max(1, count * rows)
        size = block_size(count, kernel[0] * width * 64, each)
        return channel // size, -(-count // size)

    def forward() -> Lists:
        row, channel, ky, kx = split(b.weights[weight.name].positions)
        place = x.place
        offsets = (row // (outs // groups) * ins + channel) * place.channel
        offsets = offsets + ky * dilation[0] * place.row + kx * dilation[1]
        width = min(right.out, _SUMS) * stride[1] + (kernel[1] - 1) * dilation[1]
        return lists_of(row, offsets, outs, *block_of(channel, ins, width, outs))

    def backward(phase: tuple[int, int]) -> Any:
        def lists(positions: Tensor) -> Lists:
            row, channel, ky, kx = split(positions)
            steps = [
                (a + side.padding - k * side.dilation) for a, side, k in zip(phase, sides, (ky, kx), strict=True)
            ]
            mine = (steps[0] % stride[0] == 0) & (steps[1] % stride[1] == 0)
            place = out.place
            offsets = row * place.channel + (steps[0] // stride[0]) * place.row + steps[1] // stride[1]
            inputs = row // (outs // groups) * ins + channel
            in_group = row % (outs // groups)
            chosen = mine.nonzero().flatten()
            width = min(right.out, _SUMS) + kernel[1] - 1
            block, blocks = block_of(in_group[chosen], outs // groups, width, ins * groups)
            made = lists_of(inputs[chosen], offsets[chosen], ins * groups, block, blocks)
            return made._replace(order=chosen[made.order])

        return lists

    layer = _Layer(b, x, out, weight, bias, across=0)
    padded = _Walk(x.place, padding, stride, (down.out, right.out))
    layer.forward(forward, padded, _plain(out.place))

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
        self.starts = self.offsets = self.row_out = -1
        self.lists: Lists | None = None
        self.walk: tuple[_Walk, _Walk] | None = None

    def forward(self, lists: Any, walk_in: _Walk, walk_out: _Walk) -> None:
        """The layer's product."""
        self.walk = walk_in, walk_out

        def late() -> Any:
            made = lists()
            weights = self.b.weights[self.weight]
            weights.positions = weights.positions[made.order]  # survivors lie in the order of the lists
            self.lists = made
            self.starts, self.offsets = self.b.table(made.starts), self.b.table(made.offsets)
            self.row_out = self.b.table(walk_out.rows())
            bias = self.b.leaves[self.bias].first if self.bias else -1
            return "products", BY_ROWS if self.across else BY_TILES, made.rows, {
                **walk_in.columns("in"), **walk_out.columns("out"),
                "ny": walk_out.ny, "nx": walk_out.nx, "starts": self.starts, "blocks": made.blocks,
                "offsets": self.offsets, "which": -1, "row_out": self.row_out,
                "values": self.b.leaves[self.weight].first, "bias": bias, "relu": int(self.out.rectified),
                "accumulate": 0, "gate": -1, "across": self.across,
            }  # fmt: skip

        self.b.emit(late)

    def gradients(self, products: list[tuple[Any, _Walk, _Walk]]) -> None:
        """Of the weights, the bias and, by these products, of the input."""
        grad = self.b.gradient_of(self.out)
        self._weight_gradients(grad)
        if self.bias is not None:
            self._bias_gradients(grad)
        if self.x.needs:
            target = self.b.target(self.x)
            for lists, walk_grad, walk_into in products:
                self._input_gradient(lists, walk_grad, walk_into, grad, target)
        self.b.release(self.out)

    def _weight_gradients(self, grad: Place) -> None:
        assert self.walk is not None
        walk_in, walk_out = self.walk

        def late() -> Any:
            assert self.lists is not None
            return "weight_gradients", BY_ROWS if self.across else EITHER, self.lists.rows, {
                **walk_in.columns("in"), **_moved(walk_out, grad).columns("grad"),
                "ny": walk_out.ny, "nx": walk_out.nx, "starts": self.starts, "blocks": self.lists.blocks,
                "offsets": self.offsets, "row_grad": self.row_out,
                "gradients": self.b.leaves[self.weight].first, "across": self.across,
            }  # fmt: skip

        self.b.emit(late)

    def _bias_gradients(self, grad: Place) -> None:
        assert self.walk is not None and self.bias is not None
        walk_out, leaf = self.walk[1], self.b.leaves[self.bias]

        def late() -> Any:
            columns = _moved(walk_out, grad).columns("grad")
            del columns["grad_x"]
            return "bias_gradients", BY_ROWS if self.across else EITHER, leaf.count, {
                **columns, "ny": walk_out.ny, "nx": walk_out.nx, "row_grad": self.row_out, "gradients": leaf.first,
                "across": self.across,
            }  # fmt: skip

        self.b.emit(late)

    def _input_gradient(self, lists: Any, walk_grad: _Walk, walk_into: _Walk, grad: Place, target: Any) -> None:
        def late() -> Any:
            assert self.lists is not None
            positions = self.b.weights[self.weight].positions
            made = lists(positions)
            gate = -1 if target.gate is None else walk_into.shifted(target.gate.first)
            into = _moved(walk_into, target.place)
            return "products", BY_ROWS if self.across else BY_TILES, made.rows, {
                **_moved(walk_grad, grad).columns("in"), **into.columns("out"),
                "ny": walk_into.ny, "nx": walk_into.nx, "starts": self.b.table(made.starts), "blocks": made.blocks,
                "offsets": self.b.table(made.offsets), "which": self.b.table(made.order),
                "row_out": self.b.table(into.rows()), "values": self.b.leaves[self.weight].first, "bias": -1,
                "relu": 0, "accumulate": int(target.accumulate), "gate": gate, "across": self.across,
            }  # fmt: skip

        self.b.emit(late)


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
