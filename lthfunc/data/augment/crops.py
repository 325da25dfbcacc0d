"""A random part of each image, enlarged to the image's size."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.augment.boxes import Boxes, random_boxes
from lthfunc.data.augment.draws import check_images, check_share, image_keys
from lthfunc.trees.augmenting import Augment

_RATIO = (3 / 4, 4 / 3)


@public
def random_resized_crop(least: float = 0.08) -> Augment:
    """Cut out a part of each image, of random place, area and aspect ratio, and enlarge it to the image's size.

    Szegedy et al. 2015, sec. 6; bilinear. least: the smallest area of a part, as a share of the image's, above 0; the
    largest is all of it, and ratios of width to height lie between 3/4 and 4/3. Returns an augmentation (images, key)
    -> images. Raises UserError for a share outside (0, 1].

    >>> lf.random_resized_crop(0.5)(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    check_share("random_resized_crop", "least", least)

    def augment(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
        n, _, height, width = check_images("random_resized_crop", images)
        boxes, found = random_boxes(image_keys(key, n, first), (height, width), (least, 1.0), _RATIO, whole=True)
        return enlarged(images, _or_centre(boxes, found, height, width))

    return augment


def _or_centre(boxes: Boxes, found: Tensor, height: int, width: int) -> Boxes:
    """The boxes found, and for other images the largest one of an allowed ratio at the centre."""
    wide, high = width, height
    if width / height < _RATIO[0]:
        high = round(width / _RATIO[0])
    elif width / height > _RATIO[1]:
        wide = round(height * _RATIO[1])
    centre = ((height - high) // 2, (width - wide) // 2, high, wide)
    return Boxes(*(torch.where(found, box, number) for box, number in zip(boxes, centre, strict=True)))


def enlarged(images: Tensor, boxes: Boxes) -> Tensor:
    """The box of each image, enlarged to the image's size by bilinear interpolation of pixels within the box."""
    _, _, height, width = images.shape
    for axis, (start, size, side) in {
        2: (boxes.top, boxes.height, height), 3: (boxes.left, boxes.width, width),
    }.items():  # fmt: skip
        middle = (torch.arange(side, device=images.device) + 0.5) * (size[:, None] / side) - 0.5
        middle = start[:, None] + torch.minimum(middle.clamp(min=0), size[:, None] - 1)
        before = middle.floor().long()
        after = torch.minimum(before + 1, (start + size - 1)[:, None])
        weight = middle - before
        shape = (-1, 1, side, 1) if axis == 2 else (-1, 1, 1, side)
        low, high = (images.gather(axis, place.view(shape).expand(images.shape)) for place in (before, after))
        images = low + (high - low) * weight.view(shape)
    return images
