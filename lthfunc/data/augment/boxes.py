"""Random boxes of a given range of areas and aspect ratios, one for each image."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.data.augment.draws import below, uniform

#: Tries for a box that lies within the image.
_TRIES = 10
#: Streams of draws that `random_boxes` uses.
STREAMS = 2 * _TRIES + 2


class Boxes(NamedTuple):
    """Pixels from (top, left) on, each int64 (n,)."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def inside(self, height: int, width: int) -> Tensor:
        """Whether each pixel of the images lies in their boxes: bool (n, 1, height, width)."""
        rows, columns = (torch.arange(side, device=self.top.device) for side in (height, width))
        down = (rows >= self.top[:, None]) & (rows < (self.top + self.height)[:, None])
        across = (columns >= self.left[:, None]) & (columns < (self.left + self.width)[:, None])
        return (down[:, :, None] & across[:, None, :])[:, None]


def random_boxes(
    keys: Tensor, size: tuple[int, int], area: tuple[float, float], ratio: tuple[float, float], *, whole: bool
) -> tuple[Boxes, Tensor]:
    """(boxes, whether one was found), in ten tries, as torchvision draws them.

    size: (height, width) of the images. area: of a box, as a share of the image's. ratio: of its width to its height.
    whole: whether a box may be as high or wide as the image. A box that was not found is as large as the image.
    """
    height, width = size
    tries, keys_of_tries = 2 * torch.arange(_TRIES, device=keys.device), keys[:, None]
    areas = height * width * uniform(keys_of_tries, tries, *area)
    ratios = uniform(keys_of_tries, tries + 1, math.log(ratio[0]), math.log(ratio[1])).exp()
    wide, high = (areas * ratios).sqrt().round().long(), (areas / ratios).sqrt().round().long()
    most = (height, width) if whole else (height - 1, width - 1)
    good = (high <= most[0]) & (wide <= most[1]) & (high >= int(whole)) & (wide >= int(whole))
    chosen, found = good.long().argmax(1, keepdim=True), good.any(1)
    high = torch.where(found, high.gather(1, chosen).squeeze(1), height)
    wide = torch.where(found, wide.gather(1, chosen).squeeze(1), width)
    top, left = below(keys, 2 * _TRIES, height - high + 1), below(keys, 2 * _TRIES + 1, width - wide + 1)
    return Boxes(top, left, high, wide), found
