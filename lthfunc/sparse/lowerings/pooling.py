"""Pooling: maxima, averages, adaptive and global ones."""

from __future__ import annotations

from typing import Any

import torch

from lthfunc.sparse.builder import Builder, FusedStep, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.interface import Unsupported, argument, aten, lowers, pair
from lthfunc.sparse.lowerings.shapes import pad
from lthfunc.sparse.tile_buffers import SameLayout, TileBuffer


@lowers(aten.max_pool2d.default)
def max_pool(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """max_pool2d; its gradient goes to the first maximum of a window, as PyTorch's does."""
    view = args[0]
    kernel = pair(args[1])
    stride = pair(argument(args, 2, None) or kernel)
    padding, dilation = pair(argument(args, 3, 0)), pair(argument(args, 4, 1))
    ceil = bool(argument(args, 5, False))
    if view.flat:
        raise Unsupported("on flattened values")
    twos = (kernel, stride, padding, dilation) == ((2, 2), (2, 2), (0, 0), (1, 1))
    channels, height, width = view.shape
    sizes = [
        _pooled(size, k, s, p, d, ceil)
        for size, k, s, p, d in zip((height, width), kernel, stride, padding, dilation, strict=True)
    ]
    window = {
        "height": height, "width": width, "out_height": sizes[0], "out_width": sizes[1],
        "kernel_y": kernel[0], "kernel_x": kernel[1], "stride_y": stride[0], "stride_x": stride[1],
        "pad_y": padding[0], "pad_x": padding[1], "dilation_y": dilation[0], "dilation_x": dilation[1],
    }  # fmt: skip
    out = Value(TileBuffer(channels, *sizes), view.value.needs)

    def emit(operation: Operation) -> None:
        if operation.host is not None:
            _emit_fused(b, operation, operation.host.out)
            return
        emit_maxima(b, operation, window, "max_pool_gradient", window)

    step = FusedStep.MAXIMA if twos and height % 2 == width % 2 == 0 else None
    b.operations.append(Operation([view.value], out, emit, step))
    return View(out)


def emit_maxima(
    b: Builder, operation: Operation, window: dict[str, int], gradient: str, columns: dict[str, int]
) -> None:
    """Maxima of windows. gradient: the instruction before them, with columns of its own."""
    (x,), out = operation.inputs, operation.out
    b.hold(out.buffer)

    def places() -> dict[str, int]:
        return {**x.buffer.columns("in"), **out.buffer.columns("out")}

    b.emit(lambda: ("max_pool", BY_TILES, x.buffer.channels, places() | window))
    b.differentiate(x, out, lambda grad, target: lambda: (gradient, BY_TILES, x.buffer.channels, {
        **places(), **grad.columns("grad"), **target.buffer.columns("into"), **columns, **target.columns,
    }))  # fmt: skip


def _emit_fused(b: Builder, operation: Operation, before: Value) -> None:
    """Maxima that the host writes, and no sums: beside them it writes codes, which say where gradients go."""
    before.uses += 1
    codes = operation.kept = b.hold(SameLayout(operation.out.buffer)) if b.training else None

    def gradient() -> None:
        if not before.needs:
            return
        assert codes is not None
        grad, target = b.gradient_of(operation.out), b.target(before)
        b.emit(lambda: ("unpool", BY_TILES, grad.channels, {
            **grad.columns("grad"), **grad.sides, **codes.columns("codes"), **target.buffer.columns("into"),
        }))  # fmt: skip
        b.release(operation.out)

    b.backward.append(gradient)


@lowers(aten.adaptive_max_pool2d.default)
def adaptive_max_pool(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View | None]:
    """adaptive_max_pool2d to sizes that divide the image's: the values, without their places."""
    view, buffer = args[0], args[0].value.buffer
    sizes = [given or size for given, size in zip(args[1], (buffer.height, buffer.width), strict=True)]
    if buffer.height % sizes[0] or buffer.width % sizes[1]:
        raise Unsupported("whose windows are not all of one size")
    return [max_pool(b, [view, [buffer.height // sizes[0], buffer.width // sizes[1]]], {}), None]


@lowers(aten.avg_pool2d.default)
def average_pool(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """avg_pool2d(x, kernel, stride, padding, ceil_mode, count_include_pad, divisor)."""
    view, kernel = args[0], pair(args[1])
    stride, padding = pair(argument(args, 2, None) or kernel), pair(argument(args, 3, 0))
    ceil, counts_padding = bool(argument(args, 4, False)), bool(argument(args, 5, True))
    divisor = int(argument(args, 6, None) or 0)
    buffer, whole = view.value.buffer, True
    windows, of_padded = [], []
    for size, k, s, p in zip((buffer.height, buffer.width), kernel, stride, padding, strict=True):
        first = torch.arange(_pooled(size, k, s, p, 1, ceil)) * s - p
        whole &= int(first[-1]) + k <= size + p
        each = torch.stack([first, first + k], 1)
        windows.append(each.clamp(0, size))
        of_padded.append((each + p).clamp(0, size + 2 * p))
    if divisor or not counts_padding:
        return _averaged(b, view, windows, divisor)
    if whole:
        return _averaged(b, view, windows, kernel[0] * kernel[1])
    # The last windows are cut off behind the padding, and each is divided by its own size.
    amounts = [padding[1], padding[1], padding[0], padding[0]]
    return _averaged(b, pad(b, [view, amounts], {}), of_padded, 0)


@lowers(aten.adaptive_avg_pool2d.default)
def adaptive_average_pool(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """adaptive_avg_pool2d to any size."""
    view, buffer = args[0], args[0].value.buffer
    sizes = [
        size if given is None else given for size, given in zip((buffer.height, buffer.width), args[1], strict=True)
    ]
    windows = [
        torch.tensor([[i * size // n, -(-(i + 1) * size // n)] for i in range(n)])
        for size, n in zip((buffer.height, buffer.width), sizes, strict=True)
    ]
    return _averaged(b, view, windows, 0)


def mean_of_image(b: Builder, view: View, *, keeps: bool) -> View:
    """The mean over height and width. keeps: as places of their own."""
    buffer = view.value.buffer
    windows = [torch.tensor([[0, size]]) for size in (buffer.height, buffer.width)]
    return _averaged(b, view, windows, 0)._replace(flat=not keeps)


def _averaged(b: Builder, view: View, windows: list[torch.Tensor], divisor: int) -> View:
    if view.flat:
        raise Unsupported("on flattened values")
    height, width = (len(side) for side in windows)
    out = Value(TileBuffer(view.shape[0], height, width), view.value.needs)

    def shared() -> dict[str, int]:
        tables = b.shared(out, lambda: [b.table(side.flatten()) for side in windows])
        return {
            "out_height": height, "out_width": width, "windows_y": tables[0], "windows_x": tables[1],
            "divisor": divisor,
        }  # fmt: skip

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        b.emit(lambda: (
            "average_pool", BY_TILES, x.buffer.channels,
            {**x.buffer.columns("in"), **out.buffer.columns("out"), **shared()},
        ))  # fmt: skip
        b.differentiate(x, out, lambda grad, target: lambda: ("average_pool_gradient", BY_TILES, x.buffer.channels, {
            **grad.columns("grad"), **target.buffer.columns("into"), **shared(), **x.buffer.sides, **target.columns,
        }))  # fmt: skip

    b.operations.append(Operation([view.value], out, emit))
    return View(out)


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    out = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (out - 1) * stride >= size + padding:
        out -= 1  # a window must begin inside the image or its left padding
    return out
