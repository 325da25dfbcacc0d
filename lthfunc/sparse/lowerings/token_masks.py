"""Masks of attention where lanes are tokens: numbers of each token, which are added to its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lthfunc.sparse.axes import Arrangement, Side, merged, only
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.broadcasting import add
from lthfunc.sparse.lowerings.interface import Unsupported
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import first_of, placed, stride
from lthfunc.sparse.lowerings.pointwise import pointwise
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


def added_to_scores(b: Builder, terms: Sequence[tuple[Any, bool]], heads: int) -> View:
    """The sum of a mask's terms, (batch, heads or 1, 1, 1): each numbers, or truths of what is read; whether those are
    inverted. Raises Unsupported for numbers that have a gradient."""
    found: View | None = None
    for given, inverted in terms:
        view = as_view(b, given)
        if view.value.dtype == torch.bool:
            view = _infinite(b, view, inverted=inverted)
        found = view if found is None else add(b, [found, view], {})
    if found is None or found.value.needs:
        raise Unsupported("under a mask that has a gradient")
    arrangement = found.arrangement
    if len(arrangement.sizes) == 3:
        arrangement = arrangement.with_one(1)
    batch, of_heads, *places = arrangement.dimensions
    plain = [axis.side for axis in batch] == [Side.EXAMPLE] and len(of_heads) <= 1 and not any(places)
    if len(places) != 2 or arrangement.sizes[1] not in (1, heads):
        raise Unsupported("under a mask of other dimensions than its scores")
    found = arranged_view(found.value, arrangement)
    return found if plain else placed(b, found, [Side.EXAMPLE, *[Side.CHANNEL] * 3])


def _infinite(b: Builder, truths: View, *, inverted: bool) -> View:
    """0 where a truth says so, and minus infinity elsewhere."""
    below = pointwise(b, truths, "scale", -1.0) if inverted else pointwise(b, truths, "shift", -1.0)
    return pointwise(b, below, "threshold", -0.5, -math.inf)


def mask_columns(name: str, buffer: TileBuffer, arrangement: Arrangement) -> dict[str, int]:
    """The columns of such a value in attention."""
    return {
        name: first_of(arrangement, buffer), f"{name}_tile": buffer.tile,
        f"{name}_head": stride(only(merged(arrangement.dimensions[1])), buffer),
    }  # fmt: skip


def no_mask(name: str) -> dict[str, int]:
    """The columns of none."""
    return {name: -1, f"{name}_tile": 0, f"{name}_head": 0}
