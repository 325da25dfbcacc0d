"""Functions of single numbers, dropout, and residual additions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from lthfunc.sparse.axes import Side
from lthfunc.sparse.builder import Builder, FusedStep, Operation, Value, View
from lthfunc.sparse.kernels.instructions import BY_TILES, POINTWISE
from lthfunc.sparse.lowerings.interface import Unsupported, aten, drawn, lowers, sequences
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import whole
from lthfunc.sparse.tile_buffers import TileBuffer

#: Functions that give truths, by the names of PyTorch's operations.
COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
#: Functions that give whole numbers of whole numbers, with settings that are whole.
_OF_WHOLE_NUMBERS = ("scale", "shift", "abs", "clamp")


def added(b: Builder, left: View, right: View) -> View:
    """The sum of two values of one shape (a residual connection)."""
    out = Value(TileBuffer(*left.value.buffer.size), needs=left.value.needs or right.value.needs)

    def emit(operation: Operation) -> None:
        if operation.host is not None:
            _emit_fused_add(b, operation, operation.host)
            return
        x, y = operation.inputs
        b.hold(out.buffer)
        b.emit(lambda: ("add", BY_TILES, out.buffer.channels, {
            **x.buffer.columns("a"), **y.buffer.columns("b"), **out.buffer.columns("out"), **out.buffer.sides,
            "relu": int(out.rectified),
        }))  # fmt: skip

        def gradient() -> None:
            for value in (x, y):
                if value.needs:
                    copied(b, out, value)
            if out.needs:
                b.release(out)

        b.backward.append(gradient)

    accepts = frozenset({FusedStep.RECTIFY})
    b.operations.append(Operation([left.value, right.value], out, emit, FusedStep.ADD, accepts))
    return left.of(out)


def _emit_fused_add(b: Builder, operation: Operation, host: Operation) -> None:
    """A value that its writer writes with another one added to it: one pass over memory less."""
    (other,) = operation.inputs
    if host.out.pending is not None:
        host.out.pending(other)
        host.out.pending = None

    def gradient() -> None:
        if other.needs:
            _donate(b, host.out, other)

    # Runs before the gradient of what wrote the value, which reads the same gradient.
    b.backward.append(gradient)


def _donate(b: Builder, source: Value, value: Value) -> None:
    """Part of a value's gradient that is the gradient of another: it gets that one's memory once that was read.

    It is copied where the value has parts of a gradient already, or its own is read before. Whoever reads that before
    with any halo reads the other one's, if it has no other parts.
    """
    owes = True

    def copy() -> None:
        nonlocal owes
        if not owes:
            return
        owes = False
        grad, free = source.grad, value.grad is None and value.donation is None and not value.rectified
        alike = grad is not None and not grad.local and value.half_gradient == grad.half
        if free and alike and value.any_halo and value.uses == 1:
            value.grad, value.written, value.donation = b.gradient_of(source), 1, lambda: True
        else:
            copied(b, source, value)

    def give() -> bool:
        nonlocal owes
        grad = source.grad
        assert grad is not None
        alike = value.buffer.layout == grad.layout and value.half_gradient == grad.half
        alone = value.grad is None and alike and (value.uses > 1 or not value.rectified)
        if not (owes and alone) or grad.local:
            copy()
            return False
        owes, value.grad, value.written = False, grad, 1
        return True

    if source.donation is not None or value is source:
        copy()
    else:
        source.donation = give
        value.owed.append(copy)


@lowers(aten.dropout.default, aten.dropout_.default, arranged=True)
def dropout(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """dropout(x, p, train): other numbers than PyTorch's generator draws, of the same distribution."""
    view = as_view(b, args[0])
    share, training = float(args[1]), bool(args[2])
    if not training or share == 0.0:
        return view
    if not any(axis.side is Side.EXAMPLE for axis in view.arrangement.axes):
        # PyTorch draws one mask for the batch, the machine one for each example.
        raise Unsupported("of a parameter or buffer")
    view, draws = whole(b, view), {**drawn(b, share), **sequences(b)}
    out = Value(TileBuffer(*view.value.buffer.size), view.value.needs)
    channels = out.buffer.channels

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        shared = {**out.buffer.sides, **draws, "scale": b.numbers([1 / (1 - share)])}
        b.emit(lambda: (
            "dropout", BY_TILES, channels,
            {**x.buffer.columns("in"), **out.buffer.columns("out"), **shared, "accumulate": 0, "gate": -1},
        ))  # fmt: skip
        b.differentiate(x, out, lambda grad, target: lambda: (
            "dropout", BY_TILES, channels,
            {**grad.columns("in"), **target.buffer.columns("out"), **shared, **target.columns},
        ))  # fmt: skip

    b.operations.append(Operation([view.value], out, emit))
    return view.of(out)


def flat_log_softmax(b: Builder, view: View) -> View:
    """log_softmax over features."""
    features = view.value.buffer.features
    out = Value(TileBuffer(features, 1, 1), view.value.needs)

    def listed(prefix: str, addresses: str, buffer: TileBuffer) -> dict[str, int]:
        return {prefix: buffer.first, f"{prefix}_tile": buffer.tile, addresses: b.table(buffer.addresses())}

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        b.hold(out.buffer)
        b.emit(lambda: (
            "log_softmax", BY_TILES, features,
            {**listed("in", "addresses", x.buffer), **listed("out", "out_addresses", out.buffer)},
        ))  # fmt: skip
        b.differentiate(x, out, lambda grad, target: lambda: ("log_softmax_gradient", BY_TILES, features, {
            **listed("out", "addresses", out.buffer), "grad": grad.first, "grad_tile": grad.tile,
            **listed("into", "into_addresses", target.buffer), "accumulate": int(target.accumulate),
        }), gates=False)  # fmt: skip

    b.operations.append(Operation([view.value], out, emit))
    return View(out, flat=True)


def copied(b: Builder, source: Value, value: Value) -> None:
    """Part of a value's gradient that is the gradient of another, as it is."""
    grad, target = b.gradient_of(source), b.target(value)
    b.copy(grad, target)


def pointwise(
    b: Builder, given: Any, kind: str, number: float = 0.0, other: float = 0.0, *, step: FusedStep | None = None,
    slope: Sequence[float] | None = None,
) -> View:  # fmt: skip
    """A function of each number of a value, by its name among the machine's. number, other: its settings; slope: those
    of its derivative, where these are others."""
    seen, has_slope = as_view(b, given), kind not in (*COMPARISONS, "trunc")
    view = whole(b, seen)
    if not has_slope and view.value is not seen.value:
        view.value.needs = False  # a copy for this alone, which gives no gradient
    out = Value(TileBuffer(*view.value.buffer.size), view.value.needs and has_slope)
    whole_numbers = view.value.dtype == torch.int64 and kind in _OF_WHOLE_NUMBERS
    whole_numbers &= all(each.is_integer() or math.isnan(each) for each in (number, other))
    out.dtype = torch.bool if kind in COMPARISONS else torch.int64 if whole_numbers else torch.float32
    channels = out.buffer.channels

    def emit(operation: Operation) -> None:
        if operation.host is not None:
            return
        (x,) = operation.inputs
        b.hold(out.buffer)
        shared, settings = {"kind": POINTWISE.index(kind), **out.buffer.sides}, b.numbers([number, other])
        b.emit(lambda: ("pointwise", BY_TILES, channels, {
            **x.buffer.columns("in"), **out.buffer.columns("out"), **shared, "number": settings,
        }))  # fmt: skip
        if out.needs:
            of_slope = settings if slope is None else b.numbers([*slope])
            b.differentiate(x, out, lambda grad, target: lambda: ("pointwise_gradient", BY_TILES, channels, {
                **x.buffer.columns("in"), **grad.columns("grad"), **target.buffer.columns("into"), **shared,
                "number": of_slope, **target.columns,
            }))  # fmt: skip

    b.operations.append(Operation([view.value], out, emit, step))
    return view.of(out)
