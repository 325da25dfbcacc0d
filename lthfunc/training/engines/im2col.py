"""The gradient of a first convolution's weights as one matrix product over columns of the images.

oneDNN's convolutions work on 16 channels at a time, and waste most of that on images of one or three: for 64 filters of
3×3 on one channel the product takes a sixth of the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.training.engines.gemm import has_one_dnn
from lthfunc.training.engines.realized import FILTERS, realized

#: Inputs that a filter meets, up to which it pays.
_INPUTS = 32


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> Any:
    """(None, the weight's gradient, the bias's); NotImplemented where the images' is wanted too, or it doesn't pay."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and has_one_dnn()
    simple = not transposed and groups == 1 and all(step == 1 for step in dilation)
    filters, channels, *window = weight.shape
    inputs = weight[0].numel()
    if not (plain and simple) or wanted[0] or not wanted[1] or inputs > _INPUTS or filters < FILTERS:
        return NotImplemented
    columns = im2col(x, weight.shape[2:], stride, padding)
    if wanted[2]:  # a bias is a weight whose input is one
        columns = torch.cat([columns, columns.new_ones(1, columns.shape[1])])
    found = torch.ops.lthfunc.gemm(columns, grad.permute(0, 2, 3, 1).reshape(-1, filters), None)
    of_weight = found[:inputs].view(*window, channels, filters).permute(3, 2, 0, 1)
    return None, of_weight, found[inputs] if wanted[2] else None


def im2col(x: Tensor, window: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """The inputs that each weight of a filter meets: (window · channels, images · positions)."""
    padded = realized(F.pad(x, (padding[1], padding[1], padding[0], padding[0])))
    down, across = (
        step * ((size - length) // step) + 1
        for size, length, step in zip(padded.shape[2:], window, stride, strict=True)
    )
    met = [
        padded[:, channel, i : i + down : stride[0], j : j + across : stride[1]]
        for i in range(window[0])
        for j in range(window[1])
        for channel in range(x.shape[1])
    ]
    return torch.stack(met).view(len(met), -1)
