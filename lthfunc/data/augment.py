"""Random changes of training images, as pure functions of the batch and a key; they run inside the step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.errors import ArgumentError
from lthfunc.trees.rng import fold_in, integers

_PAD = 4


def shift_and_mirror(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
    """Shift each image by up to 4 pixels, filling with zeros, and mirror it with probability 1/2.

    He et al. 2016, sec. 4.2. images: (n, channels, height, width). key: int64 scalar, of which the draws are a
    function. first: the number of the first image in the whole batch, where these are a part of it. Returns images of
    the same shape. Raises ArgumentError for anything else than images.

    >>> lf.shift_and_mirror(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else described(images)
        raise ArgumentError(f"shift_and_mirror: images must be a tensor (n, channels, height, width), not {what}")
    n, _, height, width = images.shape
    top, left = (integers(fold_in(key, axis), n, 2 * _PAD + 1, first) for axis in (0, 1))
    mirror = integers(fold_in(key, 2), n, 2, first)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(mirror[:, None] == 1, width - 1 - columns, columns) + left[:, None]
    padded = F.pad(images, (_PAD,) * 4)
    index = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last; move them back.
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
