"""Parts of images overwritten by zeros, which are the mean of normalised images."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.augment.boxes import STREAMS, Boxes, random_boxes
from lthfunc.data.augment.draws import below, check_images, check_share, image_keys, uniform
from lthfunc.errors import invalid
from lthfunc.trees.augmenting import Augment

_AREA, _RATIO = (0.02, 1 / 3), (0.3, 3.3)


@public
def random_erasing(probability: float = 0.5) -> Augment:
    """Overwrite a rectangle of each image by zeros, with some probability.

    Zhong et al. 2020. The rectangle has 2 % to 33 % of the image's area and a ratio of width to height of 0.3 to 3.3.
    Returns an augmentation (images, key) -> images. Raises UserError for a probability outside (0, 1].

    >>> lf.random_erasing()(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    check_share("random_erasing", "probability", probability)

    def augment(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
        n, _, height, width = check_images("random_erasing", images)
        keys = image_keys(key, n, first)
        boxes, found = random_boxes(keys, (height, width), _AREA, _RATIO, whole=False)
        chosen = found & (uniform(keys, STREAMS) < probability)
        return torch.where(boxes.inside(height, width) & chosen.view(n, 1, 1, 1), 0.0, images)

    return augment


@public
def cutout(side: int | None = None) -> Augment:
    """Overwrite a square of each image by zeros; it may lie partly outside.

    DeVries & Taylor 2017. side: of the square in pixels; by default half of the image's shorter side. Returns an
    augmentation (images, key) -> images. Raises UserError for a side below 1, and for
    one that leaves nothing of any image.

    >>> lf.cutout(4)(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    if side is not None and side < 1:
        raise invalid("cutout: side", side, "a number of pixels above 0")

    def augment(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
        n, _, height, width = check_images("cutout", images)
        if side is not None and side >= 2 * max(height, width):
            raise invalid(
                "cutout: side", side, f"less than {2 * max(height, width)}, of which nothing of an image would be left"
            )
        keys, length = image_keys(key, n, first), side or max(1, min(height, width) // 2)
        top, left = (below(keys, number, size) - length // 2 for number, size in enumerate((height, width)))
        whole = torch.full_like(top, length)
        return torch.where(Boxes(top, left, whole, whole).inside(height, width), 0.0, images)

    return augment
