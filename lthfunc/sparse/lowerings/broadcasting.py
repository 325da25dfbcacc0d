"""Sums, differences, products and choices of values, parameters, buffers and numbers, broadcast to one shape."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from lthfunc.sparse.axes import Dimension, Side
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, COMBINED
from lthfunc.sparse.lowerings.interface import Buffer, Param, Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.parameters import Leaf, as_view, leaf_value, shape_of
from lthfunc.sparse.lowerings.placing import aligned, placed
from lthfunc.sparse.lowerings.pointwise import added, pointwise
from lthfunc.sparse.tile_buffers import TileBuffer, no_buffer
from lthfunc.sparse.views import arranged_view

_Shape = tuple[int, int, int]
_Leaf = (Param, Buffer, Tensor)


@lowers(aten.mul.Tensor, aten.mul_.Tensor, leaves=True, arranged=True)
def multiply(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """A value times a number, a parameter, a buffer or another value."""
    left, right = laid_out(b, args[0], args[1])
    for number, view in ((right, left), (left, right)):
        if isinstance(number, (int, float)) and isinstance(view, View):
            return pointwise(b, view, "scale", float(number))
    return combined(b, left, right, "product")


@lowers(aten.div.Tensor, aten.div_.Tensor, arranged=True)
def divide(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """A value divided by a number or by another value, and a number divided by a value."""
    if isinstance(args[1], (int, float)):
        divisor = float(args[1])
        return pointwise(b, args[0], "scale", 1.0 / divisor if divisor else math.copysign(math.inf, divisor))
    found: View = multiply(b, [pointwise(b, args[1], "reciprocal", 0.0), args[0]], {})
    return found


_POWERS = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}


@lowers(aten.pow.Tensor_Scalar, arranged=True)
def power(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """A value to the power of a whole number from 2 on, or of 1/2, -1/2 or -1."""
    if args[1] in _POWERS:
        return pointwise(b, args[0], _POWERS[args[1]], 0.0)
    if args[1] != int(args[1]) or not 2 <= args[1] <= 8:
        raise Unsupported("of other powers than 2 to 8, 1/2, -1/2 and -1")
    view = found = as_view(b, args[0])
    for _ in range(int(args[1]) - 1):
        found = multiply(b, [found, view], {})
    return found


@lowers(aten.neg.default, arranged=True)
def negative(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """-x."""
    return pointwise(b, args[0], "scale", -1.0)


@lowers(aten.add.Tensor, aten.add_.Tensor, leaves=True, arranged=True)
def add(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x + alpha · y; a residual connection where both are values of one shape."""
    (left, right), alpha = laid_out(b, args[0], args[1]), float(kwargs.get("alpha", 1))
    if isinstance(right, (int, float)) and isinstance(left, View):
        return pointwise(b, left, "shift", alpha * float(right))
    same = isinstance(left, View) and isinstance(right, View) and _size(left) == _size(right)
    if same and alpha == 1.0 and left.flat == right.flat:
        return added(b, left, right)
    return combined(b, left, right, "sum", alpha)


@lowers(aten.sub.Tensor, aten.sub_.Tensor, leaves=True, arranged=True)
def subtract(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x - alpha · y."""
    (left, right), alpha = laid_out(b, args[0], args[1]), float(kwargs.get("alpha", 1))
    if isinstance(right, (int, float)) and isinstance(left, View):
        return pointwise(b, left, "shift", -alpha * float(right))
    return combined(b, left, right, "sum", -alpha)


@lowers(aten.rsub.Scalar, arranged=True)
def subtract_from(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """number - alpha · x."""
    scaled = pointwise(b, args[0], "scale", -float(argument(args, 2, 1)))
    return pointwise(b, scaled, "shift", float(args[1]))


def laid_out(b: Builder, left: Any, right: Any) -> tuple[Any, Any]:
    """Both operands laid out alike, where one is neither an image nor flattened: as images that are broadcast, or else
    as values of one shape."""
    plain = [not (isinstance(each, View) and each.arranged is not None) for each in (left, right)]
    if isinstance(right, (int, float)) or (all(plain) and not _flattened_otherwise(left, right)):
        return left, right
    if isinstance(left, View) and isinstance(right, View) and any(plain):
        image, other = (left, right) if plain[0] else (right, left)
        found = None if image.flat else broadcast_image(b, other)
        if found is not None:
            return (image, found) if plain[0] else (found, image)
    return aligned(b, as_view(b, left), as_view(b, right))


def _flattened_otherwise(left: Any, right: Any) -> bool:
    """Whether both are as many features, flattened from values of other sides."""
    if not (isinstance(left, View) and isinstance(right, View) and left.flat and right.flat):
        return False
    return left.shape == right.shape and _size(left) != _size(right)


def broadcast_image(b: Builder, view: View) -> View | None:
    """A copy as an image, of size one where the view repeats itself; None where it is none."""
    given: list[Dimension] = [() for _ in range(4 - len(view.arrangement.dimensions))]
    for each in view.arrangement.dimensions:
        given.append(() if all(axis.side is Side.REPEATED for axis in each) else each)
    batch, *others = given
    if len(others) != 3 or any(axis.side is Side.EXAMPLE for each in others for axis in each):
        return None
    if any(axis.side is not Side.EXAMPLE for axis in batch) or len(batch) > 1:
        return None
    narrow = arranged_view(view.value, view.arrangement._replace(dimensions=(batch, *others)))
    return View(placed(b, narrow, [Side.EXAMPLE, Side.CHANNEL, Side.ROW, Side.COLUMN]).value)


class _Side(NamedTuple):
    """One operand of two: its value, and where it lies once its memory does."""

    value: Value
    size: _Shape

    def columns(self, prefix: str, buffer: TileBuffer) -> dict[str, int]:
        """Of an instruction: along an axis of one place a value is repeated by a step of 0."""
        steps = {"channel": buffer.channel, "row": buffer.row, "column": 1}
        return {
            prefix: buffer.first, f"{prefix}_tile": buffer.tile,
            **{f"{prefix}_{name}": step if size > 1 else 0
               for (name, step), size in zip(steps.items(), self.size, strict=True)},
        }  # fmt: skip


def combined(b: Builder, left: Any, right: Any, kind: str, number: float = 1.0) -> View:
    """What two values are made to, by its name among the machine's, of one shape after both are broadcast."""
    views = [each for each in (left, right) if isinstance(each, View)]
    if not views:
        raise Unsupported("of a parameter or buffer")
    if any(view.flat != views[0].flat for view in views):
        raise Unsupported("of flattened values and images")
    whole = views[0] if len(views) == 1 else None
    sides = [_side(b, each, whole) for each in (left, right)]
    size = _broadcast(sides[0].size, sides[1].size)
    out = Value(TileBuffer(*size), needs=any(side.value.needs for side in sides))
    constants = b.numbers([1.0, number])

    def emit(operation: Operation) -> None:
        x, y = operation.inputs
        b.hold(out.buffer)
        b.emit(lambda: ("combine", BY_TILES, size[0], {
            **sides[0].columns("a", x.buffer), **sides[1].columns("b", y.buffer), **out.buffer.columns("out"),
            **out.buffer.sides, "kind": COMBINED.index(kind), "number": constants + 1,
        }))  # fmt: skip

        def share(which: int) -> tuple[_Side, TileBuffer]:
            """What one of both gets of the gradient of the larger, or of the smaller."""
            found, both = b.allocate(*size), [(sides[0], x.buffer), (sides[1], y.buffer)]
            mine, other = both[which], both[1 - which]
            first, second = (mine, other) if kind == "maximum" else (other, mine)
            b.emit(lambda: ("combine", BY_TILES, size[0], {
                **first[0].columns("a", first[1]), **second[0].columns("b", second[1]), **found.columns("out"),
                **found.sides, "kind": COMBINED.index("share"), "number": constants,
            }))  # fmt: skip
            return _Side(out, size), found

        def factor(which: int) -> tuple[_Side, TileBuffer] | None:
            if kind in ("maximum", "minimum"):
                return share(which)
            return None if kind == "sum" else (sides[1 - which], (x, y)[1 - which].buffer)

        def gradient() -> None:
            for which, value in enumerate((x, y)):
                if value.needs:
                    _gradient(b, out, value, factor(which), constants + (which if kind == "sum" else 0))
            if out.needs:
                b.release(out)

        b.backward.append(gradient)

    b.operations.append(Operation([side.value for side in sides], out, emit))
    return views[0].of(out)


def _gradient(b: Builder, out: Value, value: Value, beside: tuple[_Side, TileBuffer] | None, number: int) -> None:
    """The part of a value's gradient that comes from `out`: summed over what the value was broadcast to."""
    grad, target = b.gradient_of(out), b.target(value)
    size, whole = value.buffer.size, out.buffer.size
    over = dict(
        zip(("over_channels", "over_height", "over_width"),
            (all_ // one for all_, one in zip(whole, size, strict=True)), strict=True)
    )  # fmt: skip

    def late() -> Any:
        factor = {**no_buffer("b"), "b_column": 0} if beside is None else beside[0].columns("b", beside[1])
        return "combine_gradient", BY_TILES, size[0], {
            **grad.columns("grad"), **factor, **target.buffer.columns("into"), **value.buffer.sides, **over,
            "number": number, **target.columns,
        }  # fmt: skip

    b.emit(late)


def _side(b: Builder, given: Any, whole: View | None) -> _Side:
    if isinstance(given, View):
        return _Side(given.value, _size(given))
    if not isinstance(given, _Leaf) or whole is None:
        raise Unsupported("of anything but values, parameters, buffers and numbers")
    value = _broadcast_leaf(b, given, whole)
    return _Side(value, value.buffer.size)


def _broadcast_leaf(b: Builder, leaf: Leaf, beside: View) -> Value:
    """A parameter, buffer or constant as a value that all examples share, of a shape that broadcasts with `beside`."""
    shape = shape_of(b, leaf)
    dimensions = len(beside.shape)
    if len(shape) > dimensions and math.prod(shape[: len(shape) - dimensions]) == 1:
        shape = shape[len(shape) - dimensions :]  # the batch's
    if len(shape) > dimensions:
        raise Unsupported("of a parameter or buffer with another number for each example")
    shape = (1,) * (dimensions - len(shape)) + shape
    size = _size(beside)
    if not beside.flat:
        size = shape[0], shape[1], shape[2]
    elif shape[0] == 1:
        size = 1, 1, 1
    return leaf_value(b, leaf, TileBuffer(*size), lambda buffer, positions: buffer.addresses()[positions])


def _size(view: View) -> _Shape:
    return view.value.buffer.size


def _broadcast(left: _Shape, right: _Shape) -> _Shape:
    if any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
        raise Unsupported("of different shapes")
    channels, height, width = map(max, left, right)
    return channels, height, width
