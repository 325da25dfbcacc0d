"""Products of two values and softmax over the last dimension: attention that is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lthfunc.sparse.axes import Arrangement, Axis, Dimension, Side, merged, only
from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES
from lthfunc.sparse.lowerings.columns import along_columns
from lthfunc.sparse.lowerings.interface import Param, Unsupported, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import as_tokens, covers, filled, first_of, placed, stride
from lthfunc.sparse.lowerings.pointwise import flat_log_softmax
from lthfunc.sparse.lowerings.transposed import transposed
from lthfunc.sparse.tile_buffers import TileBuffer
from lthfunc.sparse.views import arranged_view


@lowers(aten.bmm.default, aten.matmul.default, arranged=True)
def matmul(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """bmm and matmul of two values, whose leading dimensions are the batch and heads, and of one with a parameter."""
    if isinstance(args[1], Param) and len(b.shapes[args[1].name]) == 2:
        return times_parameter(b, as_view(b, args[0]), args[1])
    left, right = (_operand(b, as_view(b, each)) for each in args[:2])
    leading = left.arrangement.dimensions[:-2]
    if left.arrangement.sizes[:-2] != right.arrangement.sizes[:-2] or _order(left) != _order(right):
        raise Unsupported("of values whose leading dimensions differ")
    height, count = left.arrangement.sizes[-2:]
    width = right.arrangement.sizes[-1]
    heads = _head(left.arrangement).size
    out = Value(TileBuffer(heads, height, width), needs=left.value.needs or right.value.needs)
    result = Arrangement((
        *_as_channels(leading), merged([Axis(Side.ROW, height)]), merged([Axis(Side.COLUMN, width)]),
    ))  # fmt: skip

    def emit(operation: Operation) -> None:
        x, y = operation.inputs
        b.hold(out.buffer)

        def of_left(name: str, buffer: TileBuffer, first: str, second: str) -> dict[str, int]:
            return _columns(name, left.arrangement, buffer, first, second)

        def of_right(name: str, buffer: TileBuffer, first: str, second: str) -> dict[str, int]:
            return _columns(name, right.arrangement, buffer, first, second)

        def of_out(name: str, buffer: TileBuffer, first: str, second: str) -> dict[str, int]:
            return _columns(name, result, buffer, first, second)

        b.emit(lambda: ("lane_products", BY_TILES, heads, {
            **of_left("a", x.buffer, "row", "step"), **of_right("b", y.buffer, "step", "column"),
            **of_out("out", out.buffer, "row", "column"), "height": height, "width": width, "count": count,
            "accumulate": 0,
        }))  # fmt: skip

        def gradient() -> None:
            grad = b.gradient_of(out)
            for value, view in ((x, left), (y, right)):
                if not value.needs:
                    continue
                target = b.target(value)
                target = target if covers(view) else filled(b, target)
                if view is left:  # the gradient times the other one's transpose
                    b.emit(lambda target=target: ("lane_products", BY_TILES, heads, {  # type: ignore[misc]
                        **of_out("a", grad, "row", "step"), **of_right("b", y.buffer, "column", "step"),
                        **of_left("out", target.buffer, "row", "column"), "height": height, "width": count,
                        "count": width, "accumulate": int(target.accumulate),
                    }))  # fmt: skip
                else:
                    b.emit(lambda target=target: ("lane_products", BY_TILES, heads, {  # type: ignore[misc]
                        **of_left("a", x.buffer, "step", "row"), **of_out("b", grad, "step", "column"),
                        **of_right("out", target.buffer, "row", "column"), "height": count, "width": width,
                        "count": height, "accumulate": int(target.accumulate),
                    }))  # fmt: skip
                if target.gate is not None:
                    b.rectify(target, target.gate)
            b.release(out)

        if out.needs:
            b.backward.append(gradient)

    b.operations.append(Operation([left.value, right.value], out, emit))
    return arranged_view(out, result)


def times_parameter(b: Builder, view: View, weight: Param) -> View:
    """``x @ weight`` over the last dimension: a transposed convolution of one place, whose weights are (ins, outs)."""
    ins, outs = b.shapes[weight.name]
    if len(view.arrangement.sizes) < 2 or view.arrangement.sizes[-1] != ins:
        raise Unsupported("of other features than the weight has")
    view = as_tokens(b, view)
    out = transposed(b, View(view.value), weight, None, (1, 1), (0, 0), (0, 0), 1, (1, 1)).value
    last = merged([Axis(Side.CHANNEL, outs)])
    return arranged_view(out, view.arrangement._replace(dimensions=(*view.arrangement.dimensions[:-1], last)))


def _operand(b: Builder, view: View) -> View:
    """Of one axis of heads at most beside the batch, and of one for each of the last two dimensions."""
    *leading, rows, columns = view.arrangement.dimensions
    others = [axis for dimension in leading for axis in dimension if axis.side is not Side.EXAMPLE]
    if sum(axis.side is Side.EXAMPLE for dimension in leading for axis in dimension) != 1:
        raise Unsupported("of values without the batch among their leading dimensions")
    plain = all(axis.side is not Side.REPEATED for axis in view.arrangement.axes)
    if plain and len(others) <= 1 and len(rows) <= 1 and len(columns) <= 1:
        return view
    return placed(b, view, [*[Side.CHANNEL] * len(leading), Side.ROW, Side.COLUMN])


def _head(arrangement: Arrangement) -> Axis:
    """All leading dimensions but the batch, as one: where there are several, a copy has them one behind the other."""
    axes = [axis for dimension in arrangement.dimensions[:-2] for axis in dimension]
    return only(merged([axis for axis in axes if axis.side is not Side.EXAMPLE]))


def _order(view: View) -> list[list[bool]]:
    """Where the batch is among the leading dimensions."""
    return [[axis.side is Side.EXAMPLE for axis in dimension] for dimension in view.arrangement.dimensions[:-2]]


def _as_channels(leading: Sequence[Dimension]) -> list[Dimension]:
    """Leading dimensions of the result, whose heads are its channels."""
    found, count = list[Dimension](), 1
    for dimension in reversed(leading):
        axes: list[Axis] = []
        for axis in reversed(dimension):
            axes.insert(0, axis if axis.side is Side.EXAMPLE else Axis(Side.CHANNEL, axis.size, count))
            count *= 1 if axis.side is Side.EXAMPLE else axis.size
        found.insert(0, tuple(axes))
    return found


def _columns(name: str, arrangement: Arrangement, buffer: TileBuffer, first: str, second: str) -> dict[str, int]:
    """Of an operand, whose last two dimensions are called `first` and `second` in the instruction."""
    *_, rows, columns = arrangement.dimensions
    steps = {"head": _head(arrangement), first: only(rows), second: only(columns)}
    return {
        name: first_of(arrangement, buffer), f"{name}_tile": buffer.tile,
        **{f"{name}_{step}": stride(axis, buffer) for step, axis in steps.items()},
    }  # fmt: skip


@lowers(aten.softmax.int, arranged=True)
def softmax(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """softmax(x, dim)."""
    return _softmax(b, as_view(b, args[0]), args[1], logarithms=False)


@lowers(aten.log_softmax.int, arranged=True)
def log_softmax(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """log_softmax(x, dim)."""
    view = as_view(b, args[0])
    if view.arranged is None and view.flat and args[1] in (1, -1):
        return flat_log_softmax(b, view)
    return _softmax(b, view, args[1], logarithms=True)


def _softmax(b: Builder, view: View, dim: int, *, logarithms: bool) -> View:
    view = along_columns(b, view, dim % len(view.arrangement.sizes))
    out = Value(TileBuffer(*view.value.buffer.size), view.value.needs)
    shared = {**out.buffer.sides, "logarithms": int(logarithms)}

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        b.emit(lambda: ("row_softmax", BY_TILES, out.buffer.channels, {
            **x.buffer.columns("in"), **out.buffer.columns("out"), **shared
        }))  # fmt: skip
        b.differentiate(x, out, lambda grad, target: lambda: ("row_softmax_gradient", BY_TILES, grad.channels, {
            **out.buffer.columns("out"), **grad.columns("grad"), **target.buffer.columns("into"), **shared,
            **target.columns,
        }))  # fmt: skip

    b.operations.append(Operation([view.value], out, emit))
    return view.of(out)
