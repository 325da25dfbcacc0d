"""Random changes of training images, as a pure function of the batch and a generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_PAD = 4


def shift_and_mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels, zeros moving in, and mirror it with probability 1/2 (He et al. 2016, 4.2).

    images: (n, channels, height, width); the same shape comes back. The draws are made on the CPU.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(0, 2 * _PAD + 1, (2, n), generator=generator).to(images.device)
    mirror = torch.randint(0, 2, (n,), generator=generator).to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(mirror[:, None] == 1, width - 1 - columns, columns) + left[:, None]
    padded = F.pad(images, (_PAD,) * 4)
    index = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last; move them back.
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
