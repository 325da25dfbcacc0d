"""Sparse layers as differentiable functions of tiles, for steps written by hand: they work under `torch.func` and
`torch.compile`, and a new mask compiles nothing, since lists are arguments.

    t = to_tiles(x)                                        # (n, C, H, W) -> (tiles, C, H, W, 16)
    t = sparse_conv2d(t, values, bias, conv_pattern(mask, (H, W), padding=1))
    y = from_tiles(t, n)

The engine runs the same kernels fused, many steps a call; these functions are for what it has no lowering for.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.sparse.tile_buffers import LANES, VECTOR_BYTES


class Pattern(NamedTuple):
    """Where a layer's survivors read and write, made once for a mask.

    starts, offsets: int32, lists by output channel, in the order of the mask's survivors. starts_back, offsets_back,
    which: the same by input channel. shape: (output channels, input channels, kernel height, kernel width).
    """

    starts: Tensor
    offsets: Tensor
    starts_back: Tensor
    offsets_back: Tensor
    which: Tensor
    shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def conv_pattern(
    mask: Tensor, size: tuple[int, int], stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)
) -> Pattern:
    """The pattern of a convolution with this mask (out, in, kernel height, kernel width), bool, on images of `size`."""
    _register()  # here, since a step that is being compiled cannot build anything
    outs, ins, high, wide = mask.shape
    row, channel, ky, kx = mask.nonzero().unbind(1)
    height, width = (side + 2 * p for side, p in zip(size, padding, strict=True))
    reads = (channel * height + ky) * width + kx
    # Backwards: the output's gradient, spread out by the stride, with a border of the kernel's size all around.
    grown = [
        (side - k) // s * s + 1 + 2 * (k - 1) for side, k, s in zip((height, width), (high, wide), stride, strict=True)
    ]
    back = (row * grown[0] + (high - 1 - ky)) * grown[1] + (wide - 1 - kx)
    order = torch.argsort(channel, stable=True)
    return Pattern(
        _starts(row, outs), (reads * VECTOR_BYTES).int(),
        _starts(channel, ins), (back[order] * VECTOR_BYTES).int(), order.int(),
        (outs, ins, high, wide), stride, padding,
    )  # fmt: skip


def linear_pattern(mask: Tensor) -> Pattern:
    """The pattern of a linear layer with this mask (out, in), bool."""
    return conv_pattern(mask[:, :, None, None], (1, 1))


def to_tiles(x: Tensor) -> Tensor:
    """(n, channels, height, width) or (n, features) to tiles of 16 examples, the last filled up with zeros."""
    x = x.reshape(*x.shape, *(1,) * (4 - x.ndim))
    x = F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % LANES))
    return x.view(-1, LANES, *x.shape[1:]).permute(0, 2, 3, 4, 1).contiguous()


def from_tiles(tiles: Tensor, examples: int) -> Tensor:
    """The inverse of `to_tiles`; images of size 1 × 1 become features (n, channels)."""
    x = tiles.permute(0, 4, 1, 2, 3).flatten(0, 1)[:examples]
    return x.flatten(1) if x.shape[2:] == (1, 1) else x


def sparse_conv2d(tiles: Tensor, values: Tensor, bias: Tensor | None, pattern: Pattern) -> Tensor:
    """A convolution by its surviving weights, or with a `linear_pattern` a linear layer on (tiles, features, 1, 1, 16).

    values: float32 (survivors,), in the order of the mask.
    """
    (py, px), (sy, sx) = pattern.padding, pattern.stride
    padded = F.pad(tiles, (0, 0, px, px, py, py)) if px or py else tiles
    outs, _, high, wide = pattern.shape
    out = [(side - k) // s + 1 for side, k, s in zip(padded.shape[2:4], (high, wide), (sy, sx), strict=True)]
    result: Tensor = _layer(
        padded, values, bias, pattern.starts, pattern.offsets, pattern.starts_back, pattern.offsets_back,
        pattern.which, (outs, *out, sy, sx, high, wide),
    )  # fmt: skip
    return result


def _starts(rows: Tensor, count: int) -> Tensor:
    lengths = torch.bincount(rows, minlength=count)
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]).int()


@functools.cache
def _register() -> None:
    """Tell PyTorch's tracers what shapes the operations give, once the kernels are there."""
    load_kernels()
    torch.library.register_fake("lthfunc::products", _fake_products)
    torch.library.register_fake("lthfunc::weight_gradients", _fake_weight_gradients)


def _fake_products(  # type: ignore[no-untyped-def]
    tiles, values, bias, starts, offsets, which, channels, height, width, stride_y, stride_x
):
    return tiles.new_empty(tiles.shape[0], channels, height, width, LANES)


def _fake_weight_gradients(tiles, grad, starts, offsets, stride_y, stride_x):  # type: ignore[no-untyped-def]
    return tiles.new_empty(offsets.shape[0])


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # Dynamo, looking into the Function under `torch.func`, would lose its gradients
def _layer(*arguments: Any) -> Tensor:
    result: Tensor = _SparseConvolution.apply(*arguments)
    return result


class _SparseConvolution(torch.autograd.Function):
    """A product and its gradients. `torch.func` wants a Function; operations with a registered one are not enough."""

    @staticmethod
    def forward(tiles, values, bias, starts, offsets, starts_back, offsets_back, which, form):  # type: ignore[no-untyped-def]
        outs, height, width, sy, sx, *_ = form
        return torch.ops.lthfunc.products(
            tiles.contiguous(), values, bias, starts, offsets, None, outs, height, width, sy, sx
        )

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        tiles, values, bias, starts, offsets, starts_back, offsets_back, which, form = inputs
        ctx.save_for_backward(tiles, values, starts, offsets, starts_back, offsets_back, which)
        ctx.form, ctx.biased = form, bias is not None

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        tiles, values, starts, offsets, starts_back, offsets_back, which = ctx.saved_tensors
        _, height, width, sy, sx, high, wide = ctx.form
        grad = grad.contiguous()
        values_grad = torch.ops.lthfunc.weight_gradients(tiles.contiguous(), grad, starts, offsets, sy, sx)
        bias_grad = grad.sum((0, 2, 3, 4)) if ctx.biased else None
        if sy > 1 or sx > 1:
            spread = grad.new_zeros(*grad.shape[:2], (height - 1) * sy + 1, (width - 1) * sx + 1, LANES)
            spread[:, :, ::sy, ::sx] = grad
            grad = spread
        grad = F.pad(grad, (0, 0, wide - 1, wide - 1, high - 1, high - 1))
        reached = (height - 1) * sy + high, (width - 1) * sx + wide
        tiles_grad = torch.ops.lthfunc.products(
            grad, values, None, starts_back, offsets_back, which, tiles.shape[1], *reached, 1, 1
        )
        tiles_grad = F.pad(tiles_grad, (0, 0, 0, tiles.shape[3] - reached[1], 0, tiles.shape[2] - reached[0]))
        return tiles_grad, values_grad, bias_grad, None, None, None, None, None, None
