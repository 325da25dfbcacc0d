"""Random changes of brightness, contrast, saturation and hue."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.augment.draws import (
    check_images,
    check_positive,
    from_levels,
    image_keys,
    known_scale,
    levels_of,
    uniform,
)
from lthfunc.errors import invalid
from lthfunc.trees.augmenting import Augment
from lthfunc.trees.types import Scale

#: Weights of red, green and blue in a grey level (ITU-R 601-2).
_LUMA = (0.2989, 0.587, 0.114)


@public
def color_jitter(scale: Scale | None, strength: float = 0.4, hue: float | None = None) -> Augment:
    """Change brightness, contrast, saturation and hue of each image by random factors, in a random order.

    Chen et al. 2020, app. A. scale: of the data set (``data.scale``), from which pixels are computed. strength: the
    factors of brightness, contrast and saturation lie between 1 - strength (at least 0) and 1 + strength. hue: the
    largest shift of the hue, as a part of the colour circle, up to 0.5; by default a quarter of the strength. Grey
    images have neither saturation nor hue. Returns an augmentation (images, key) -> images. Raises UserError for
    numbers out of range, and where there is no scale.

    >>> lf.color_jitter(lf.Scale(255, (0.5,), (0.25,)))(torch.rand(2, 3, 8, 8), torch.tensor(5)).shape
    torch.Size([2, 3, 8, 8])
    """
    scale = known_scale("color_jitter", scale)
    check_positive("color_jitter", "strength", strength)
    most = min(0.5, strength / 4) if hue is None else hue
    if not 0 <= most <= 0.5:
        raise invalid("color_jitter: hue", hue, "a number from 0 to 0.5")

    def augment(images: Tensor, key: Tensor, first: int = 0) -> Tensor:
        n, *_ = check_images("color_jitter", images, (1, 3))
        keys = image_keys(key, n, first)
        light, contrast, color = (uniform(keys, each, max(0.0, 1 - strength), 1 + strength) for each in range(3))
        order = torch.stack([uniform(keys, 4 + number) for number in range(4)]).argsort(0)
        shift = uniform(keys, 3, -most, most)
        changed = jittered(levels_of(images, scale), light, contrast, color, shift, order)
        return from_levels(changed, scale)

    return augment


def jittered(
    levels: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """Images changed by factors (n,) and a shift of the hue (n,).

    levels: (n, channels, height, width), from 0 to 1. order: int64 (4, n), what is changed first, second, …: 0 the
    brightness, 1 the contrast, 2 the saturation, 3 the hue.
    """
    for which in order.view(4, -1, 1, 1, 1):
        factor = torch.where(which.view(-1) == 0, brightness, torch.where(which.view(-1) == 1, contrast, saturation))
        shade = gray(levels)
        other = torch.where(which == 0, 0.0, torch.where(which == 1, mean_of(shade), shade))
        blended = blend(levels, other, factor)
        levels = torch.where(which == 3, with_hue(levels, hue), blended)
    return levels


def blend(levels: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """other + factor (n,) · (levels - other), between 0 and 1."""
    factor = factor.view(-1, 1, 1, 1)
    return (levels * factor + other * (1 - factor)).clamp(0, 1)


def gray(levels: Tensor) -> Tensor:
    """The grey level of each pixel, (n, 1, height, width)."""
    if levels.shape[1] == 1:
        return levels
    return sum((levels[:, at : at + 1] * weight for at, weight in enumerate(_LUMA)), torch.zeros_like(levels[:, :1]))


def mean_of(shade: Tensor) -> Tensor:
    """The mean grey level of each image, (n, 1, 1, 1)."""
    return shade.mean((1, 2, 3), keepdim=True)


def with_hue(levels: Tensor, shift: Tensor) -> Tensor:
    """The images with their hue shifted by parts (n,) of the colour circle."""
    if levels.shape[1] == 1:
        return levels
    most, least = levels.amax(1, keepdim=True), levels.amin(1, keepdim=True)
    chroma = most - least
    red, green, blue = ((most - part) / torch.where(chroma == 0, 1, chroma) for part in levels.split(1, 1))
    is_red, is_green = most == levels[:, :1], most == levels[:, 1:2]
    sixth = torch.where(is_red, blue - green, torch.where(is_green, 2 + red - blue, 4 + green - red))
    hue = sixth + 6 * shift.view(-1, 1, 1, 1)
    places = [(number + hue).remainder(6) for number in (5, 3, 1)]
    return torch.cat([most - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in places], 1)
