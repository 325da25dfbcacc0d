"""Slices, padding and concatenation."""

from __future__ import annotations

import itertools
from typing import Any

from lthfunc.sparse.builder import Builder, GradientTarget, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.dimensions import sizes_of, strided_or_copied
from lthfunc.sparse.lowerings.interface import Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.joining import joined
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.resampling import repeated_border
from lthfunc.sparse.parts import Places, Sides, sides_of
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


@lowers(aten.slice.Tensor, arranged=True)
def part(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x[:, :, a::s], along any dimension but the batch."""
    view = as_view(b, args[0])
    sizes = view.arrangement.sizes
    dim, step = argument(args, 1, 0) % len(sizes), argument(args, 4, 1)
    start, stop, _ = slice(argument(args, 2, None), argument(args, 3, None), step).indices(sizes[dim])
    count = -(-(stop - start) // step)
    if count < 1:
        raise Unsupported("of nothing")
    if view.arranged is not None or view.flat or (dim, count) == (0, sizes[0]):
        return strided_or_copied(b, view, lambda each: each.part(dim, start, count, step))
    if dim == 0:
        raise Unsupported("of the batch")
    if (start, count, step) == (0, sizes[dim], 1):
        return view
    shape = list(view.shape)
    shape[dim - 1] = count
    out = Value(TileBuffer(*shape), view.value.needs)
    steps = [step if dim == each else 1 for each in (1, 2, 3)]
    starts = [start if dim == each else 0 for each in (1, 2, 3)]
    return _connected(b, [view], out, [starts], steps, inside=out)


@lowers(aten.narrow.default, arranged=True)
def narrow(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """narrow(dim, start, length)."""
    x, dim, start, length = args
    start += sizes_of(b, x)[dim] if start < 0 else 0
    found: View = part(b, [x, dim, start, start + length], {})
    return found


@lowers(aten.pad.default, aten.constant_pad_nd.default)
def pad(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """A number, or what an image repeats, around it; where an amount is negative, less of it."""
    view: View = args[0]
    amounts = list(args[1])
    mode, value = argument(args, 2, "constant"), argument(args, 3, None)
    if args[2:] and not isinstance(args[2], str):  # constant_pad_nd(x, amounts, value)
        mode, value = "constant", args[2]
    if view.flat or len(amounts) > 6:
        raise Unsupported("of anything but channels, height and width")
    if mode != "constant":
        return repeated_border(b, view, amounts, mode)
    before, after = [0, 0, 0], [0, 0, 0]  # channels, height, width: the amounts begin with the last dimension
    for index in range(len(amounts) // 2):
        before[2 - index], after[2 - index] = amounts[2 * index], amounts[2 * index + 1]
    if min(amounts) < 0:
        view = _cut(b, view, [max(0, -each) for each in before], [max(0, -each) for each in after])
    before, after = ([max(0, each) for each in side] for side in (before, after))
    shape = [sum(each) for each in zip(view.shape, before, after, strict=True)]
    if shape == list(view.shape):
        return view
    out = Value(TileBuffer(*shape), view.value.needs)
    return _connected(b, [view], out, [before], [1, 1, 1], around=float(value or 0))


def _cut(b: Builder, view: View, before: list[int], after: list[int]) -> View:
    """An image without some of its channels, rows and columns."""
    shape = [size - a - z for size, a, z in zip(view.shape, before, after, strict=True)]
    if min(shape) < 1:
        raise Unsupported("by which nothing is left")
    out = Value(TileBuffer(*shape), view.value.needs)
    return _connected(b, [view], out, [before], [1, 1, 1], inside=out)


@lowers(aten.cat.default, arranged=True)
def concatenate(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """Values side by side: images channel after channel, others along any dimension but the batch."""
    views, dim = [as_view(b, each) for each in args[0]], argument(args, 1, 0)
    dim %= len(views[0].arrangement.sizes)
    if dim != 1 or any(view.flat or view.arranged is not None for view in views):
        return joined(b, views, dim)
    firsts = list(itertools.accumulate((view.shape[0] for view in views), initial=0))
    out = Value(TileBuffer(firsts.pop(), *views[0].shape[1:]), needs=any(view.value.needs for view in views))
    return _connected(b, views, out, [[first, 0, 0] for first in firsts], [1, 1, 1])


@lowers(aten.stack.default, arranged=True)
def stack(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """Values one after the other along a dimension of their own."""
    views, dim = [as_view(b, each) for each in args[0]], argument(args, 1, 0)
    dim %= len(views[0].arrangement.sizes) + 1
    return joined(b, [arranged_view(view.value, view.arrangement.with_one(dim)) for view in views], dim)


def _connected(
    b: Builder, views: list[View], out: Value, starts: list[list[int]], steps: list[int], inside: Value | None = None,
    around: float = 0.0,
) -> View:  # fmt: skip
    """Copies between values and `out`, of which one is a part: `inside`, or the value. around: what lies between."""
    nowhere = (0, 0, 0)
    copies = [
        Places(view.value.buffer.size, nowhere, (1, 1, 1), sides_of(first)) if inside is None
        else Places(inside.buffer.size, sides_of(first), sides_of(steps), nowhere)
        for view, first in zip(views, starts, strict=True)
    ]  # fmt: skip
    out.any_halo = True

    def emit(operation: Operation) -> None:
        if operation.host is not None:
            return
        b.hold(out.buffer)
        if around:
            b.fill(out.buffer, b.numbers([around]))
        gradients = [_copied(b, x, out, each) for x, each in zip(operation.inputs, operation.copies, strict=True)]

        def gradient() -> None:
            for each in gradients:
                each()
            if out.needs:
                b.release(out)

        b.backward.append(gradient)

    b.operations.append(Operation(
        [view.value for view in views], out, emit, copies=copies, keeps_half=True, shares_half=True
    ))  # fmt: skip
    return View(out)


def _copied(b: Builder, x: Value, out: Value, places: Places) -> Any:
    """Copy a value or a part of it to another or a part of that. Gives what its gradient does."""
    (channels, height, width), starts, steps, into = places
    part_of_x = places.size != x.buffer.size

    def of_x(buffer: TileBuffer, prefix: str) -> dict[str, int]:
        columns = buffer.columns_of_kind(prefix)
        return columns | {
            prefix: _first(buffer, starts), f"{prefix}_channel": columns[f"{prefix}_channel"] * steps[0],
            f"{prefix}_row": columns[f"{prefix}_row"] * steps[1], f"{prefix}_column": steps[2],
        }  # fmt: skip

    def of_out(buffer: TileBuffer, prefix: str) -> dict[str, int]:
        return buffer.columns_of_kind(prefix) | {prefix: _first(buffer, into), f"{prefix}_column": 1}

    sides = {"height": height, "width": width}
    b.emit(lambda: ("copy", BY_TILES, channels, {
        **of_x(x.buffer, "in"), **of_out(out.buffer, "out"), **sides, "accumulate": 0, "gate": -1,
    }))  # fmt: skip

    def gradient() -> None:
        if not x.needs:
            return
        grad, target = b.gradient_of(out), b.target(x)
        if part_of_x and not target.accumulate:
            b.fill(target.buffer)
            target = GradientTarget(target.buffer, True, target.gate)

        b.emit(lambda: ("copy", BY_TILES, channels, {
            **of_out(grad, "in"), **of_x(target.buffer, "out"), **sides, "accumulate": int(target.accumulate),
            "gate": -1 if target.gate is None else _first(target.gate, starts),
        }))  # fmt: skip
        if part_of_x and target.gate is not None:
            b.rectify(target, target.gate)  # also where no part was copied to

    return gradient


def _first(buffer: TileBuffer, starts: Sides) -> int:
    return buffer.first + starts[0] * buffer.channel + starts[1] * buffer.row + starts[2]
