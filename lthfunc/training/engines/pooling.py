"""Max pooling and its gradient, written so that a compiler makes vector code of them.

For windows that tile an image in channels-last layout. Which position of a window holds its maximum is a number of
32 bits, in the layout's own order, instead of an index of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.training.engines.realized import FILTERS, realized


def max_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> Any:
    """(the maxima, their indices), in one walk with what the gradient needs; NotImplemented where it is no faster.

    PyTorch's own bits. Indices that nobody asks for are not computed.
    """
    if not _tile(x, kernel, stride, padding, dilation) or not _keeps(x):
        return NotImplemented
    most, first = _maxima(x, kernel)
    rows, columns = (torch.arange(size, device=x.device) for size in most.shape[1:3])
    place, across = first.long(), kernel[1]
    row = rows[:, None, None] * kernel[0] + place // across
    column = columns[:, None] * across + place % across
    return realized(most).permute(0, 3, 1, 2), (row * x.shape[3] + column).permute(0, 3, 1, 2)


def max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Any:
    """The gradient of max_pool2d; NotImplemented for windows that overlap, leave gaps or are padded.

    An entry gets its window's gradient if it is the first of the window's maxima, or the last NaN. The same bits as
    PyTorch's own, four times as fast or more in Inductor's code on a CPU.
    """
    if not _tile(x, kernel, stride, padding, dilation):
        return NotImplemented
    height, width = x.shape[-2:]
    down, across = kernel
    _, first = _maxima(x, kernel)
    grads = grad.permute(0, 2, 3, 1)
    if _keeps(x):
        first, grads = realized(first), realized(grads)

    def spread(windows: Tensor) -> Tensor:
        """Each window's value at all of its positions."""
        n, rows, columns, channels = windows.shape
        wide = windows[:, :, None, :, None, :].expand(n, rows, down, columns, across, channels)
        return wide.reshape(n, height, width, channels)

    rows, columns = (torch.arange(size, device=x.device) for size in (height, width))
    here = ((rows % down) * across)[:, None, None] + (columns % across)[:, None]
    return torch.where(spread(first) == here.to(x.dtype), spread(grads), 0.0).permute(0, 3, 1, 2)


def _tile(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> bool:
    return (
        x.ndim == 4
        and len(kernel) == 2
        and list(stride or kernel) == list(kernel)
        and not any(padding)
        and all(step == 1 for step in dilation)
        and x.shape[2] % kernel[0] == x.shape[3] % kernel[1] == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _keeps(x: Tensor) -> bool:
    """Whether intermediate results are kept in memory instead of being computed again."""
    return x.device.type == "cpu" and x.shape[1] >= FILTERS


def _maxima(x: Tensor, kernel: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(each window's maximum, the number of the position that PyTorch takes it from): (n, rows, columns, channels)."""
    down, across = kernel
    images = x.permute(0, 2, 3, 1)
    places = [images[:, i::down, j::across] for i in range(down) for j in range(across)]
    most, first = places[0], torch.zeros_like(places[0])
    for number, place in enumerate(places[1:], 1):
        larger = (place > most) | (place != place)  # NaN is larger than all, and the last one counts
        most, first = torch.where(larger, place, most), torch.where(larger, float(number), first)
    return most, first
