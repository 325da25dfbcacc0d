"""Activations, additions, and scaling by a number."""

from __future__ import annotations

from typing import Any

from lthfunc.sparse.builder import Builder, FusedStep, Value, View, rectifies
from lthfunc.sparse.kernels.instructions import BY_TILES, POINTWISE
from lthfunc.sparse.lowerings.interface import Lowering, Unsupported, argument
from lthfunc.sparse.tile_buffers import TileBuffer

_DEFAULTS = {"leaky_relu": 0.01, "elu": 1.0}


def relu(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """Where nothing else reads the value, whoever writes it rectifies it."""
    view: View = args[0]
    if b.fuse(view, FusedStep.RECTIFY):
        return view
    return _pointwise(b, view, "relu", 0.0)


def activation(kind: str) -> Lowering:
    """The rule of an activation by its name in PyTorch."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        if kind == "gelu" and kwargs.get("approximate", "none") != "none":
            raise Unsupported("in its approximate form")
        if kind == "hardtanh" and args[1:]:
            limits = tuple(args[1:3])
            if limits == (0, 6):
                return _pointwise(b, args[0], "relu6", 0.0)
            if limits != (-1, 1):
                raise Unsupported("with other limits than -1 and 1")
        if kind == "elu" and len(args) > 2:
            raise Unsupported("with a scale")
        return _pointwise(b, args[0], kind, float(argument(args, 1, _DEFAULTS.get(kind, 0.0))))

    return lowering


def multiply(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """A value times a number."""
    if not isinstance(args[1], (int, float)):
        raise Unsupported("of two values")
    return _pointwise(b, args[0], "scale", float(args[1]))


def divide(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """A value divided by a number."""
    if not isinstance(args[1], (int, float)):
        raise Unsupported("of two values")
    return _pointwise(b, args[0], "scale", 1.0 / float(args[1]))


def add(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """The sum of two values of one shape (a residual connection)."""
    left, right = args[0], args[1]
    if kwargs.get("alpha", 1) != 1 or not (isinstance(left, View) and isinstance(right, View)):
        raise Unsupported("of anything but two values")
    if left.flat != right.flat or left.value.buffer.size != right.value.buffer.size:
        raise Unsupported("of different shapes")
    if left.value is not right.value:
        # Whoever still is to write a value can read the other one first; whoever has written it cannot wait for it.
        for one, other in sorted(((left, right), (right, left)), key=lambda both: both[0].value.pending is None):
            if b.fuse(one, FusedStep.ADD, other):
                return _summed(b, one, other.value)
    x, y = b.read(left), b.read(right)
    buffer = x.buffer
    out = Value(b.like(buffer), needs=x.needs or y.needs, steps=rectifies())

    def late() -> Any:
        return "add", BY_TILES, buffer.channels, {
            **x.buffer.columns("a"), **y.buffer.columns("b"), **out.buffer.columns("out"), "height": buffer.height,
            "width": buffer.width, "relu": int(out.rectified),
        }  # fmt: skip

    b.emit(late)

    def gradient() -> None:
        for value in (x, y):
            if value.needs:
                copied(b, out, value)
        if out.needs:
            b.release(out)

    b.backward.append(gradient)
    return View(out, left.flat)


def dropout(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """dropout(x, p, train): other numbers than PyTorch's generator draws, of the same distribution."""
    view: View = args[0]
    share, training = float(args[1]), bool(args[2])
    if not training or share == 0.0:
        return view
    if share >= 1.0:
        raise Unsupported("of everything")
    x = b.read(view)
    buffer = x.buffer
    out = Value(b.like(buffer), x.needs)
    shared = {
        "height": buffer.height, "width": buffer.width, "threshold": round(share * 2**32),
        "scale": b.numbers([1 / (1 - share)]), "number": len(b.instructions),
    }  # fmt: skip
    b.emit(lambda: (
        "dropout", BY_TILES, buffer.channels,
        {**buffer.columns("in"), **out.buffer.columns("out"), **shared, "accumulate": 0, "gate": -1},
    ))  # fmt: skip
    b.differentiate(x, out, lambda grad, target: lambda: (
        "dropout", BY_TILES, buffer.channels,
        {**grad.columns("in"), **target.buffer.columns("out"), **shared, **target.columns},
    ))  # fmt: skip
    return View(out, view.flat)


def log_softmax(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """log_softmax over features."""
    view = args[0]
    if not view.flat or args[1] not in (1, -1):
        raise Unsupported("over other dimensions than the features")
    x = b.read(view)
    out = Value(b.allocate(x.buffer.features), x.needs)

    def listed(prefix: str, addresses: str, buffer: TileBuffer) -> dict[str, int]:
        return {prefix: buffer.first, f"{prefix}_tile": buffer.tile, addresses: b.table(buffer.addresses())}

    b.emit(lambda: (
        "log_softmax", BY_TILES, x.buffer.features,
        {**listed("in", "addresses", x.buffer), **listed("out", "out_addresses", out.buffer)},
    ))  # fmt: skip
    b.differentiate(x, out, lambda grad, target: lambda: (
        "log_softmax_gradient", BY_TILES, x.buffer.features,
        {
            **listed("out", "addresses", out.buffer), "grad": grad.first, "grad_tile": grad.tile,
            **listed("into", "into_addresses", target.buffer), "accumulate": int(target.accumulate),
        },
    ), gates=False)  # fmt: skip
    return View(out, flat=True)


def _summed(b: Builder, one: View, other: Value) -> View:
    """A value that its writer writes with the other one added to it: one pass over memory less."""

    def gradient() -> None:
        if other.needs:
            copied(b, one.value, other)

    # Runs before the gradient of what wrote the value, which reads the same gradient.
    b.backward.append(gradient)
    return one


def copied(b: Builder, source: Value, value: Value) -> None:
    """Part of a value's gradient that is the gradient of another, as it is."""
    grad, target = b.gradient_of(source), b.target(value)

    def late() -> Any:
        return "copy", BY_TILES, grad.channels, {
            **grad.columns("in"), "in_column": 1, **target.buffer.columns("out"), "out_column": 1,
            "height": grad.height, "width": grad.width, **target.columns,
        }  # fmt: skip

    b.emit(late)


def _pointwise(b: Builder, view: View, kind: str, number: float) -> View:
    x = b.read(view)
    buffer = x.buffer
    out = Value(b.like(buffer), x.needs)
    shared = {
        "kind": POINTWISE.index(kind), "height": buffer.height, "width": buffer.width, "number": b.numbers([number])
    }  # fmt: skip
    b.emit(lambda: (
        "pointwise", BY_TILES, buffer.channels, {**buffer.columns("in"), **out.buffer.columns("out"), **shared}
    ))  # fmt: skip
    b.differentiate(x, out, lambda grad, target: lambda: (
        "pointwise_gradient", BY_TILES, buffer.channels,
        {**buffer.columns("in"), **grad.columns("grad"), **target.buffer.columns("into"), **shared, **target.columns},
    ))  # fmt: skip
    return View(out, view.flat)
