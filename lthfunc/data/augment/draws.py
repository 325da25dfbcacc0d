"""Draws of each image, as functions of a key and the image's number in the batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.errors import ArgumentError, UserError, invalid
from lthfunc.trees.ops import scaled
from lthfunc.trees.rng import fold_in
from lthfunc.trees.types import Scale

#: Bits of a draw, few enough that float32 holds each exactly and none becomes 1.
_BITS = 23
#: Tries of a draw that may be rejected, each by some 5 %.
_TRIES = 8


def image_keys(key: Tensor, count: int, first: int = 0) -> Tensor:
    """A key for each of `count` images: int64 (count,). first: the number of the first one in the whole batch."""
    return fold_in(key, torch.arange(first, first + count, device=key.device))


def uniform_draws(
    key: Tensor, count: int, first: int = 0, *, number: int = 0, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """A random number between low and high for each of `count` examples, for an augmentation of your own.

    key: that an augmentation gets. first: the number of the first example in the whole batch. number: of the draw,
    where an example needs several. Returns float32 (count,), a function of key, number and place alone.

    >>> lf.uniform_draws(torch.tensor(5), 3, low=-1, high=1).shape
    torch.Size([3])
    """
    return uniform(image_keys(key, count, first), number, low, high)


def uniform(keys: Tensor, number: Tensor | int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform draws between low and high, neither of which occurs, from the `number`-th stream of each key."""
    unit = ((fold_in(keys, number) >> (32 - _BITS)).float() + 0.5) * 2.0**-_BITS
    return low + (high - low) * unit


def below(keys: Tensor, number: Tensor | int, high: Tensor | int) -> Tensor:
    """Draws from 0 … high-1, int64."""
    return (fold_in(keys, number) * high) >> 32


def symmetric_beta(keys: Tensor, number: int, alpha: float) -> Tensor:
    """Draws of Beta(alpha, alpha), as the share of the first of two gamma variates.

    It uses the streams from `number` on. Marsaglia & Tsang 2000, with a fixed number of tries; that all are rejected
    has a probability below 1e-10.
    """
    first, second = (_log_gamma(keys, number + part * 3 * _TRIES + part, alpha) for part in range(2))
    return torch.sigmoid(first - second)


def _log_gamma(keys: Tensor, number: int, alpha: float) -> Tensor:
    """The logarithm of draws of Gamma(alpha, 1)."""
    shape = alpha if alpha >= 1 else alpha + 1
    d = shape - 1 / 3
    keys = keys[:, None]
    tries = number + 3 * torch.arange(_TRIES, device=keys.device)
    radius, angle = (-2 * uniform(keys, tries).log()).sqrt(), uniform(keys, tries + 1, 0, 2 * math.pi)
    normal = radius * angle.cos()
    cube = (1 + normal / math.sqrt(9 * d)) ** 3
    good = cube > 0
    log_cube = torch.where(good, cube, 1).log()
    good = good & (uniform(keys, tries + 2).log() < 0.5 * normal**2 + d * (1 - cube + log_cube))
    chosen = log_cube.gather(1, good.long().argmax(1, keepdim=True)).squeeze(1)
    more = 0 if alpha >= 1 else uniform(keys.squeeze(1), number + 3 * _TRIES).log() / alpha
    return math.log(d) + chosen + more


def check_images(name: str, images: Any, channels: tuple[int, ...] = ()) -> tuple[int, int, int, int]:
    """The sizes (n, channels, height, width). Raises ArgumentError for anything else, UserError for other channels."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = f"a tensor of shape {tuple(images.shape)}" if isinstance(images, Tensor) else described(images)
        raise ArgumentError(f"{name}: images must be a tensor (n, channels, height, width), not {what}")
    count, there, height, width = images.shape
    if channels and there not in channels:
        raise UserError(f"{name}: images must have 1 channel (grey) or 3 (RGB), not {there}")
    return count, there, height, width


def check_share(name: str, argument: str, value: float) -> None:
    """Raise UserError unless a value is in (0, 1]."""
    if not 0 < value <= 1:
        raise invalid(f"{name}: {argument}", value, "a number in (0, 1]")


def check_positive(name: str, argument: str, value: float) -> None:
    """Raise UserError unless a value is above 0 and finite."""
    if not 0 < value < math.inf:
        raise invalid(f"{name}: {argument}", value, "a number above 0")


def known_scale(name: str, scale: Scale | None) -> Scale:
    """The scale. Raises UserError where there is none, so that levels are not known."""
    if scale is None:
        raise UserError(
            f"{name}: works on images stored as pixels (uint8 with a scale); the levels of these are not known"
        )
    return scale


def levels_of(images: Tensor, scale: Scale) -> Tensor:
    """The inverse of `scaled`: pixels from 0 (black) to 1 (white)."""
    one = torch.ones(1, len(scale.mean), 1, 1, device=images.device)
    black, white = scaled(0 * one, scale), scaled(scale.unit * one, scale)
    return (images - black) / (white - black)


def from_levels(levels: Tensor, scale: Scale) -> Tensor:
    """Pixels from 0 to 1 as the network takes them."""
    return scaled(levels * scale.unit, scale)
