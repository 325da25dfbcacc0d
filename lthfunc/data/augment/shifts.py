"""Images moved by some pixels, mirrored, or both."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.augment.draws import check_images
from lthfunc.errors import invalid
from lthfunc.trees.augmenting import Augment
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
    n, *_ = check_images("shift_and_mirror", images)
    top, left = (integers(fold_in(key, axis), n, 2 * _PAD + 1, first) for axis in (0, 1))
    return _moved(images, top, left, integers(fold_in(key, 2), n, 2, first), _PAD)


def mirror(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
    """Mirror each image, left to right, with probability 1/2.

    images, key, first: as `shift_and_mirror` takes them. Returns images of the same shape. Raises ArgumentError for
    anything else than images.

    >>> lf.mirror(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    n, *_ = check_images("mirror", images)
    turned = integers(fold_in(key, 2), n, 2, first)
    return torch.where(turned.view(n, 1, 1, 1) == 1, images.flip(3), images)


@public
def shift(pixels: int = 4) -> Augment:
    """Shift each image by up to `pixels` in each direction, filling with zeros; `shift_and_mirror` without mirroring.

    Returns an augmentation (images, key) -> images. Raises UserError for a number below 1, and for one
    that moves images out of sight.

    >>> lf.shift(2)(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    if pixels < 1:
        raise invalid("shift: pixels", pixels, "a whole number above 0")

    def augment(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
        n, _, height, width = check_images("shift", images)
        if pixels >= min(height, width):
            raise invalid("shift: pixels", pixels, f"less than {min(height, width)}, the shorter side of the images")
        top, left = (integers(fold_in(key, axis), n, 2 * pixels + 1, first) for axis in (0, 1))
        return _moved(images, top, left, torch.zeros_like(top), pixels)

    return augment


def _moved(images: Tensor, top: Tensor, left: Tensor, mirrored: Tensor, pad: int) -> Tensor:
    """Images padded by zeros, mirrored where it is 1, and cut to their size from (top, left) on, each (n,)."""
    n, _, height, width = images.shape
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(n, width)
    columns = torch.where(mirrored[:, None] == 1, width - 1 - columns, columns) + left[:, None]
    padded = F.pad(images, (pad,) * 4)
    index = torch.arange(n, device=images.device)[:, None, None]
    # Advanced indices around a slice put the channels last; move them back.
    return padded[index, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
