"""RandAugment: some random operations on each image, all of one magnitude."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.augment.colors import blend, gray, mean_of
from lthfunc.data.augment.draws import below, check_images, from_levels, image_keys, known_scale, levels_of
from lthfunc.errors import invalid
from lthfunc.trees.augmenting import Augment
from lthfunc.trees.types import Scale

#: What an image may undergo; each is drawn as often as any other.
OPERATIONS = (
    "identity", "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "brightness", "color", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip

#: Magnitudes are whole numbers up to this one.
_MOST = 30
#: The largest shear, translation (of the image's side), rotation [degrees] and change of a factor.
_SHEAR, _TRANSLATE, _ROTATE, _FACTOR = 0.3, 150 / 331, 30.0, 0.9
#: Levels closer to a threshold than this reach it.
_ROUNDING = 1e-4


@public
def rand_augment(scale: Scale | None, count: int = 2, magnitude: int = 9) -> Augment:
    """Apply `count` random operations of one magnitude to each image.

    Cubuk et al. 2020; the operations and their ranges are torchvision's: shears, translations, rotation, brightness,
    saturation, contrast, sharpness, posterizing, solarizing, automatic contrast, equalizing, or none. scale: of the
    data set (``data.scale``), from which pixels are computed. magnitude: from 0 to 30. What comes in from outside is
    black. Returns an augmentation (images, key) -> images. Raises UserError for numbers out of range, and where there
    is no scale.

    >>> lf.rand_augment(lf.Scale(255, (0.5,), (0.25,)))(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    scale = known_scale("rand_augment", scale)
    if count < 1:
        raise invalid("rand_augment: count", count, "a whole number above 0")
    if not 0 <= magnitude <= _MOST:
        raise invalid("rand_augment: magnitude", magnitude, f"a whole number from 0 to {_MOST}")

    def augment(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
        n, *_ = check_images("rand_augment", images, (1, 3))
        keys, levels = image_keys(key, n, first), levels_of(images, scale)
        for number in range(count):
            which, sign = below(keys, 2 * number, len(OPERATIONS)), 1 - 2 * below(keys, 2 * number + 1, 2)
            levels = operated(levels, which, sign, magnitude)
        return from_levels(levels, scale)

    return augment


def operated(levels: Tensor, which: Tensor, sign: Tensor, magnitude: int) -> Tensor:
    """Each image after one operation.

    levels: (n, channels, height, width), from 0 to 1. which: numbers in OPERATIONS, (n,). sign: 1 or -1, (n,): the
    direction of those that have one.
    """
    part = magnitude / _MOST
    shade = gray(levels)

    def by_operation(base: Tensor, **others: Tensor) -> Tensor:
        for name, other in others.items():
            chosen = (which == OPERATIONS.index(name.replace("_", "-"))).view(-1, *(1,) * (base.ndim - 1))
            base = torch.where(chosen, other, base)
        return base

    others = by_operation(
        levels, brightness=torch.zeros_like(levels), color=shade.expand_as(levels),
        contrast=mean_of(shade).expand_as(levels), sharpness=blurred(levels),
    )  # fmt: skip
    blended = blend(levels, others, 1 + _FACTOR * part * sign)
    colored = by_operation(levels, brightness=blended, color=blended, contrast=blended, sharpness=blended)
    colored = by_operation(
        colored, posterize=posterized(levels, 8 - round(4 * part)), solarize=solarized(levels, 1 - part),
        autocontrast=autocontrasted(levels), equalize=equalized(levels),
    )  # fmt: skip
    return _warped(colored, which, sign, part)


def _warped(levels: Tensor, which: Tensor, sign: Tensor, part: float) -> Tensor:
    """Images after shears, translations and rotations: the nearest pixel, or black from outside."""
    n, channels, height, width = levels.shape
    y = (torch.arange(height, device=levels.device) - (height - 1) / 2).view(1, -1, 1)
    x = (torch.arange(width, device=levels.device) - (width - 1) / 2).view(1, 1, -1)

    def amount(name: str, most: float) -> Tensor:
        return torch.where(which == OPERATIONS.index(name), most * sign, 0.0).view(-1, 1, 1)

    shear_x, shear_y = amount("shear-x", _SHEAR * part), amount("shear-y", _SHEAR * part)
    right = amount("translate-x", float(int(_TRANSLATE * width * part)))
    down = amount("translate-y", float(int(_TRANSLATE * height * part)))
    angle = amount("rotate", math.radians(_ROTATE * part))
    from_x = angle.cos() * x - angle.sin() * y + shear_x * (y + height / 2) - right
    from_y = angle.sin() * x + angle.cos() * y + shear_y * (x + width / 2) - down
    column, row = (from_x + (width - 1) / 2).round().long(), (from_y + (height - 1) / 2).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).view(n, 1, -1)
    moved = levels.flatten(2).gather(2, place.expand(n, channels, -1)).view_as(levels)
    return torch.where(inside[:, None], moved, 0.0)


def blurred(levels: Tensor) -> Tensor:
    """Means over 3 × 3 pixels in which the middle one counts five times; pixels at the border stay as they are."""
    if min(levels.shape[2:]) <= 2:
        return levels
    inner = levels[:, :, 1:-1, 1:-1]
    change = (9 * F.avg_pool2d(levels, 3, 1) + 4 * inner) / 13 - inner
    return levels + F.pad(change, (1, 1, 1, 1))


def posterized(levels: Tensor, bits: int) -> Tensor:
    """Levels of so many bits."""
    count = 1 << bits
    return (levels * count).floor().clamp(0, count - 1) / count


def solarized(levels: Tensor, threshold: float) -> Tensor:
    """Levels from a threshold on, inverted."""
    return torch.where(levels >= threshold - _ROUNDING, 1 - levels, levels)


def autocontrasted(levels: Tensor) -> Tensor:
    """Each channel stretched, so that its darkest pixel is black and its brightest white."""
    least, most = levels.amin((2, 3), keepdim=True), levels.amax((2, 3), keepdim=True)
    flat = most == least
    return ((levels - torch.where(flat, 0, least)) / torch.where(flat, 1, most - least)).clamp(0, 1)


def equalized(levels: Tensor) -> Tensor:
    """Each channel with a nearly even histogram, of 256 levels, as Pillow computes it."""
    stored = (levels * (256 - 1e-3)).floor().clamp(0, 255).long().flatten(2)
    histogram = torch.zeros(*stored.shape[:2], 256, dtype=torch.int64, device=levels.device)
    histogram = histogram.scatter_add(2, stored, torch.ones_like(stored))
    sums = histogram.cumsum(2)
    brightest = histogram.gather(2, stored.amax(2, keepdim=True))
    step = (stored.shape[2] - brightest).div(255, rounding_mode="floor")
    before = F.pad(sums[..., :-1], (1, 0))
    table = (before + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp(0, 255)
    return (torch.where(step > 0, table.gather(2, stored), stored).float() / 255).view_as(levels)
