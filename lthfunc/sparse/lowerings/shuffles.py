"""Pixel shuffle and its inverse: channels become places of an image, and back; and channels in other orders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lthfunc.sparse.axes import Side
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.dimensions import strided
from lthfunc.sparse.lowerings.interface import Unsupported, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import placed


@lowers(aten.pixel_shuffle.default, arranged=True)
def pixel_shuffle(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """(channels · r², height, width) to (channels, height · r, width · r) (Shi et al. 2016)."""
    view, factor = as_view(b, args[0]), int(args[1])
    examples, channels, height, width = _sizes(view)
    apart = (examples, channels // factor**2, factor, factor, height, width)
    sides = Side.EXAMPLE, Side.CHANNEL, Side.ROW, Side.ROW, Side.COLUMN, Side.COLUMN
    found = _shuffled(b, view, apart, (0, 1, 4, 2, 5, 3), sides)
    return strided(found, lambda each: each.reshaped([examples, apart[1], height * factor, width * factor]))


@lowers(aten.pixel_unshuffle.default, arranged=True)
def pixel_unshuffle(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """(channels, height · r, width · r) to (channels · r², height, width)."""
    view, factor = as_view(b, args[0]), int(args[1])
    examples, channels, height, width = _sizes(view)
    apart = (examples, channels, height // factor, factor, width // factor, factor)
    sides = Side.EXAMPLE, Side.CHANNEL, Side.CHANNEL, Side.CHANNEL, Side.ROW, Side.COLUMN
    found = _shuffled(b, view, apart, (0, 1, 3, 5, 2, 4), sides)
    return strided(found, lambda each: each.reshaped([examples, channels * factor**2, apart[2], apart[4]]))


@lowers(aten.channel_shuffle.default, arranged=True)
def channel_shuffle(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """channel_shuffle(x, groups) (Zhang et al. 2018): one channel of each group, then the next of each."""
    view, groups = as_view(b, args[0]), int(args[1])
    examples, channels, *places = sizes = view.arrangement.sizes
    order = (0, 2, 1, *range(3, len(sizes) + 1))
    apart = (examples, groups, channels // groups, *places)
    return strided(view, lambda each: each.reshaped(apart).permuted(order).reshaped(sizes))


def _sizes(view: View) -> tuple[int, ...]:
    if len(view.arrangement.sizes) != 4:
        raise Unsupported("of other dimensions than (batch, channels, height, width)")
    return view.arrangement.sizes


def _shuffled(b: Builder, view: View, apart: Sequence[int], order: Sequence[int], sides: Sequence[Side]) -> View:
    """A copy of dimensions that are taken apart and put in another order."""
    return placed(b, strided(view, lambda each: each.reshaped(apart).permuted(order)), sides)
