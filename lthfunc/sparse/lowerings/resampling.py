"""Interpolation, and places in another order: each place of an image is made of two rows and columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.columns import along_columns
from lthfunc.sparse.lowerings.interface import Lowering, Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.tile_buffers import TileBuffer


class Taps(NamedTuple):
    """What each place of a side reads: int64 (places, 2), and the weights of both, float32."""

    places: Tensor
    weights: Tensor


def taken(places: Tensor) -> Taps:
    """Taps that read one place each."""
    return Taps(torch.stack([places, places], 1), torch.tensor([1.0, 0.0]).repeat(len(places), 1))


def taps_of(weights: Tensor) -> Taps:
    """Of a matrix (places read, places made), in which no column has more than two entries that are not zero."""
    found = weights.abs().topk(min(2, len(weights)), dim=0).indices.T.sort(1).values
    found = found if found.shape[1] == 2 else found.expand(-1, 2)
    each = weights.T.gather(1, found)
    if len(weights) == 1:  # both taps are of the one place there is
        each[:, 1] = 0
    return Taps(found, each)


def _resized(flat: Any) -> Callable[[int, int | None, float | None, bool | None], Tensor]:
    """An interpolation of one side as a matrix, asked of PyTorch: `flat` is its operation of one dimension."""

    def matrix(size: int, out: int | None, scale: float | None, align: bool | None) -> Tensor:
        sizes, scales = (None, [scale]) if out is None else ([out], None)
        arguments = (sizes, scales) if align is None else (sizes, align, scales)
        found: Tensor = flat(torch.eye(size)[None], *arguments)
        return found[0]

    return matrix


def interpolation(flat: Any, *, aligns: bool) -> Lowering:
    """The lowering of an interpolation of images. aligns: whether it has the argument align_corners."""
    matrix = _resized(flat)

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        view, sizes, rest = args[0], args[1], list(args[2:])
        align = bool(rest.pop(0)) if aligns else None
        scales = rest[0] if rest else None
        sides = [
            taps_of(matrix(size, sizes[k] if sizes is not None else None, scales[k] if scales else None, align))
            for k, size in enumerate(_sides(view))
        ]
        return resampled(b, view, sides[0], sides[1])

    return lowering


for _operation, _flat, _aligns in (
    (aten.upsample_nearest2d.vec, aten.upsample_nearest1d.vec, False),
    (aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact1d.vec, False),
    (aten.upsample_bilinear2d.vec, aten.upsample_linear1d.vec, True),
):
    lowers(_operation)(interpolation(_flat, aligns=_aligns))


def repeated_border(b: Builder, view: View, amounts: Sequence[int], mode: str) -> View:
    """Padding that repeats an image's own places. mode: "reflect", "replicate" or "circular"."""
    if len(amounts) > 4 or min(amounts) < 0:
        raise Unsupported(f"of {mode} along other sides than height and width, or with negative amounts")
    height, width = _sides(view)
    given = [*amounts, *[0] * (4 - len(amounts))]

    def places(size: int, before: int, after: int) -> Taps:
        return taken(F.pad(torch.arange(size).float()[None, None], (before, after), mode=mode)[0, 0].long())

    return resampled(b, view, places(height, given[2], given[3]), places(width, given[0], given[1]))


@lowers(aten.flip.default, arranged=True)
def flip(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """Dimensions from the last place to the first."""
    return _ordered(b, args[0], args[1], lambda places, _: places.flip(0))


@lowers(aten.roll.default, arranged=True)
def roll(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """Dimensions moved on, the last places to the front."""
    shifts = args[1]
    return _ordered(b, args[0], argument(args, 2, []), lambda places, number: places.roll(shifts[number]))


def _ordered(b: Builder, given: Any, dims: Sequence[int], order: Callable[[Tensor, int], Tensor]) -> View:
    """A value whose dimensions have other orders. order: (places of one, which of `dims`) -> in the new order."""
    view = as_view(b, given)
    sizes = view.arrangement.sizes
    places = {dim % len(sizes): torch.arange(sizes[dim]) for dim in dims}
    for number, dim in enumerate(dims):
        places[dim % len(sizes)] = order(places[dim % len(sizes)], number)
    if not dims:
        raise Unsupported("of all dimensions as one")
    if view.arranged is None and not view.flat and places.keys() <= {2, 3}:
        down, across = (places.get(dim, torch.arange(sizes[dim])) for dim in (2, 3))
        return resampled(b, view, taken(down), taken(across))
    for dim, each in places.items():
        view = along_columns(b, view, dim)
        rows = torch.arange(view.value.buffer.height)
        view = view.of(resampled(b, View(view.value), taken(rows), taken(each)).value)
    return view


def _sides(view: View) -> tuple[int, int]:
    if view.flat:
        raise Unsupported("on flattened values")
    return view.value.buffer.height, view.value.buffer.width


def resampled(b: Builder, view: View, down: Taps, across: Taps) -> View:
    """An image of these rows and columns of another."""
    out = Value(TileBuffer(view.shape[0], len(down.places), len(across.places)), view.value.needs)
    out.dtype = view.value.dtype
    weighted = any(bool((side.weights[:, 1] != 0).any()) for side in (down, across))
    weights = [b.numbers(side.weights.flatten().tolist()) for side in (down, across)]

    def shared() -> dict[str, int]:
        tables = b.shared(out, lambda: [b.table(side.places.flatten()) for side in (down, across)])
        return {
            **view.value.buffer.sides, "out_height": out.buffer.height, "out_width": out.buffer.width,
            "taps_y": tables[0], "taps_x": tables[1], "weights_y": weights[0], "weights_x": weights[1],
            "weighted": int(weighted),
        }  # fmt: skip

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        channels = out.buffer.channels
        b.emit(lambda: (
            "resample", BY_TILES, channels, {**x.buffer.columns("in"), **out.buffer.columns("out"), **shared()}
        ))  # fmt: skip
        b.differentiate(x, out, lambda grad, target: lambda: ("resample_gradient", BY_TILES, channels, {
            **grad.columns("grad"), **target.buffer.columns("into"), **shared(), **target.columns,
        }))  # fmt: skip

    b.operations.append(Operation([view.value], out, emit))
    return View(out)
