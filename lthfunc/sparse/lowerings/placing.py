"""Copies between arrangements, for operations that need their operands in a layout of their own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.axes import Arrangement, Axis, Dimension, Side, merged, size_of
from lthfunc.sparse.builder import Builder, GradientTarget, Operation, Value, View
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.interface import Unsupported
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


def stride(axis: Axis, buffer: TileBuffer) -> int:
    """Vectors from one place of an axis to the next. To be asked for once halos are known."""
    each = {Side.CHANNEL: buffer.channel, Side.ROW: buffer.row, Side.COLUMN: 1}
    return axis.step * each.get(axis.side, 0)


def first_of(arrangement: Arrangement, buffer: TileBuffer) -> int:
    """The vector of an arrangement's first place."""
    channel, row, column = arrangement.first
    return buffer.first + channel * buffer.channel + row * buffer.row + column


def addresses_of(view: View, buffer: TileBuffer) -> Tensor:
    """int64 (features,): vectors from a buffer's first to each place of a view, in its order, but for the batch's."""
    if view.arranged is None:
        return buffer.addresses()
    return sum_of_steps(view.arrangement.axes, buffer) + first_of(view.arrangement, buffer) - buffer.first


def sum_of_steps(axes: Sequence[Axis], buffer: TileBuffer) -> Tensor:
    """int64: vectors from the first place of some axes to each, in their order."""
    found = torch.zeros(1, dtype=torch.int64)
    for axis in axes:
        if axis.side is not Side.EXAMPLE:
            found = (found[:, None] + torch.arange(axis.size) * stride(axis, buffer)).flatten()
    return found


def covers(view: View) -> bool:
    """Whether a view has each number of its value once."""
    axes = [axis for axis in view.arrangement.axes if axis.side is not Side.EXAMPLE]
    repeated = any(axis.side is Side.REPEATED for axis in axes)
    return not repeated and size_of(axes) == view.value.buffer.features


def has_tokens_layout(view: View) -> bool:
    """Whether the last dimension is the channels, so that all others are places."""
    last = view.arrangement.dimensions[-1]
    return covers(view) and last == merged([Axis(Side.CHANNEL, view.value.buffer.channels)])


def as_tokens(b: Builder, view: View) -> View:
    """The view with its last dimension along the channels, and the others along places of one row."""
    if has_tokens_layout(view):
        return view
    return placed(b, view, [*[Side.COLUMN] * (len(view.arrangement.dimensions) - 1), Side.CHANNEL])


def whole(b: Builder, view: View) -> View:
    """The view where it has all of its value, or else a copy of what it has."""
    return view if covers(view) else as_tokens(b, view)


def plain_view(b: Builder, view: View) -> View:
    """The view as (batch, features) or as an image (batch, channels, height, width). Raises Unsupported for others."""
    if view.arranged is None:
        return view
    sides = {2: [Side.CHANNEL], 4: [Side.CHANNEL, Side.ROW, Side.COLUMN]}.get(len(view.arranged.sizes))
    batch, *others = view.arranged.dimensions
    plain = merged(batch) == batch and [axis.side for axis in batch] == [Side.EXAMPLE]
    if sides is None or not plain or any(axis.side is Side.EXAMPLE for each in others for axis in each):
        raise Unsupported("of other dimensions than (batch, features) or (batch, channels, height, width)")
    return placed(b, view, [Side.EXAMPLE, *sides])


def placed(b: Builder, view: View, sides: Sequence[Side]) -> View:
    """A copy in memory of its own, each dimension along a side; several along one side follow each other there."""
    arrangement, size = lying(view.arrangement, sides)
    return copied_into(b, [view], size, [arrangement], arrangement)


def lying(arrangement: Arrangement, sides: Sequence[Side]) -> tuple[Arrangement, tuple[int, int, int]]:
    """(how such a copy lies, its channels, height and width)."""
    counts = dict.fromkeys(Side, 1)
    dimensions: list[Dimension] = []
    for dimension, side in reversed(list(zip(arrangement.dimensions, sides, strict=True))):
        axes: list[Axis] = []
        for axis in reversed(dimension):
            if axis.side is Side.EXAMPLE:
                axes.append(axis)
            else:
                axes.append(Axis(side, axis.size, counts[side]))
                counts[side] *= axis.size
        dimensions.insert(0, merged(axes[::-1]))
    return Arrangement(tuple(dimensions)), (counts[Side.CHANNEL], counts[Side.ROW], counts[Side.COLUMN])


def placed_like(b: Builder, view: View, model: View) -> View:
    """A copy in memory that is laid out as another view's, which has all of its value and as many dimensions."""
    return copied_into(b, [view], model.value.buffer.size, [model.arrangement], model.arrangement)


def aligned(b: Builder, left: View, right: View) -> tuple[View, View]:
    """Both views of one shape and laid out alike, so that their values can be added place by place."""
    sizes = torch.broadcast_shapes(left.arrangement.sizes, right.arrangement.sizes)
    both = [
        view if view.arrangement.sizes == sizes
        else arranged_view(view.value, view.arrangement.repeated(sizes, TRACED_BATCH)) for view in (left, right)
    ]  # fmt: skip
    batches = [any(axis.side is Side.EXAMPLE for axis in view.arrangement.axes) for view in both]
    whole_ones = [covers(view) and has_batch for view, has_batch in zip(both, batches, strict=True)]
    if all(whole_ones) and both[0].arrangement == both[1].arrangement and _alike(*both):
        return both[0], both[1]
    if whole_ones[0]:
        return both[0], placed_like(b, both[1], both[0])
    if whole_ones[1]:
        return placed_like(b, both[0], both[1]), both[1]
    if batches[1] and not batches[0]:
        second = whole(b, both[1])
        return placed_like(b, both[0], second), second
    first = whole(b, both[0])
    return first, placed_like(b, both[1], first)


def _alike(one: View, other: View) -> bool:
    return one.value.buffer.size == other.value.buffer.size


def copied_into(
    b: Builder, views: Sequence[View], size: tuple[int, int, int], parts: Sequence[Arrangement], whole: Arrangement
) -> View:
    """A new value of (channels, height, width), of which each view becomes a part, seen as `whole`."""
    out = Value(TileBuffer(*size), needs=any(view.value.needs for view in views))
    if len(kinds := {view.value.dtype for view in views}) == 1:
        out.dtype = kinds.pop()
    loops = [_loops(view.arrangement, part) for view, part in zip(views, parts, strict=True)]

    def emit(operation: Operation) -> None:
        b.hold(out.buffer)
        gradients = [
            _copied(b, x, view, out, part, each)
            for x, view, part, each in zip(operation.inputs, views, parts, loops, strict=True)
        ]

        def gradient() -> None:
            for each in gradients:
                each()
            if out.needs:
                b.release(out)

        b.backward.append(gradient)

    b.operations.append(Operation([view.value for view in views], out, emit))
    return arranged_view(out, whole)


@dataclass(frozen=True)
class _Loop:
    """size: how often; source, target: the axes that it steps along."""

    size: int
    source: Axis
    target: Axis

    @property
    def reversed(self) -> _Loop:
        """From the target to the source."""
        return _Loop(self.size, self.target, self.source)


def _loops(source: Arrangement, target: Arrangement) -> list[_Loop]:
    """Loops over all places of two arrangements of one shape, outermost first."""
    found: list[_Loop] = []
    for ours, theirs in zip(source.dimensions, target.dimensions, strict=True):
        left, right = list(ours), list(theirs)
        inner: list[_Loop] = []
        while left and right:
            a, z = left.pop(), right.pop()
            size = min(a.size, z.size)
            if max(a.size, z.size) % size or (Side.EXAMPLE in (a.side, z.side) and a.size != z.size):
                raise Unsupported("of this form")
            # The batch is no axis of memory: it stays the batch, or comes of what all examples share.
            if (a.side is Side.EXAMPLE or z.side is Side.EXAMPLE) and a.side not in (z.side, Side.REPEATED):
                raise Unsupported("of the batch and another dimension")
            if z.side is not Side.EXAMPLE:
                inner.insert(0, _Loop(size, a, z))
            for axis, axes in ((a, left), (z, right)):
                if axis.size > size:
                    axes.append(axis._replace(size=axis.size // size, step=axis.step * size))
        if left or right:
            raise Unsupported("of this form")
        found += inner
    return found


def _copied(b: Builder, x: Value, view: View, out: Value, part: Arrangement, loops: list[_Loop]) -> Callable[[], None]:
    """Copy what a view has of x to a part of `out`. Gives what its gradient does."""
    source, is_whole = view.arrangement, covers(view)
    for outer, inner in _instructions(loops):
        _emit(b, x.buffer, source, out.buffer, part, outer, inner)

    def gradient() -> None:
        if not (x.needs and out.needs):
            return
        grad, target = b.gradient_of(out), b.target(x)
        target = filled(b, target) if not is_whole else target
        back = [each.reversed for each in loops]
        for outer, inner in _instructions(back):
            _emit(b, grad, part, target.buffer, source, outer, inner, accumulate=target.accumulate)
        if target.gate is not None:
            b.rectify(target, target.gate)

    return gradient


def filled(b: Builder, target: GradientTarget) -> GradientTarget:
    """A gradient of which parts alone are written next: what is there is added to, or else zeros are."""
    if target.accumulate:
        return target
    b.fill(target.buffer)
    return target._replace(accumulate=True)


def _instructions(loops: list[_Loop]) -> list[tuple[tuple[tuple[_Loop, int], ...], list[_Loop]]]:
    """(loops with the number at which each stands, the three loops of an instruction) for each copy."""
    order = sorted(loops, key=lambda each: (each.source.side is Side.COLUMN and each.source.step == 1, each.size))
    apart, inner = order[:-3], order[-3:]
    numbers = itertools.product(*(range(each.size) for each in apart))
    return [(tuple(zip(apart, each, strict=True)), inner) for each in numbers]


def _emit(
    b: Builder, read: TileBuffer, source: Arrangement, into: TileBuffer, target: Arrangement,
    outer: tuple[tuple[_Loop, int], ...], inner: list[_Loop], *, accumulate: bool = False,
) -> None:  # fmt: skip
    missing = [_Loop(1, Axis(Side.REPEATED, 1), Axis(Side.REPEATED, 1))] * (3 - len(inner))
    rows, height, width = [*missing, *inner]

    def late() -> Any:
        columns: dict[str, int] = {}
        for prefix, buffer, arrangement, axis in (
            ("in", read, source, attrgetter("source")),
            ("out", into, target, attrgetter("target")),
        ):
            begin = sum(number * stride(axis(loop), buffer) for loop, number in outer)
            columns |= {prefix: first_of(arrangement, buffer) + begin, f"{prefix}_tile": buffer.tile}
            for name, loop in (("channel", rows), ("row", height), ("column", width)):
                columns[f"{prefix}_{name}"] = stride(axis(loop), buffer)
        return "copy", BY_TILES, rows.size, {
            **columns, "in_half": 0, "out_half": 0, "height": height.size, "width": width.size,
            "accumulate": int(accumulate), "gate": -1,
        }  # fmt: skip

    b.emit(late)
