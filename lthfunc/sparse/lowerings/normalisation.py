"""Batch normalisation, in training and in evaluation mode; group and layer normalisation."""

from __future__ import annotations

import math
from typing import Any

from lthfunc.sparse.axes import Side
from lthfunc.sparse.builder import Builder, FusedStep, GradientTarget, Normalised, Operation, Value, View
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.kernels.instructions import BY_ROWS, BY_TILES, CONSTANTS, SAVED, SUMS
from lthfunc.sparse.lowerings.dimensions import strided
from lthfunc.sparse.lowerings.interface import (
    Buffer,
    Param,
    Unsupported,
    argument,
    aten,
    claim,
    gradient_at,
    lowers,
    value_at,
)  # fmt: skip
from lthfunc.sparse.lowerings.made_rows import NormalisedGradientRows, NormalisedRows
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import placed
from lthfunc.sparse.lowerings.product_columns import sums_at
from lthfunc.sparse.lowerings.token_norm import tokens_norm
from lthfunc.sparse.tile_buffers import Local, TileBuffer
from lthfunc.sparse.views import WriteRows

_VALUE_SUMS, _GRADIENT_SUMS = CONSTANTS["VALUE_SUMS"], CONSTANTS["GRADIENT_SUMS"]


@lowers(aten.batch_norm.default)
def batch_norm(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """batch_norm(x, weight, bias, mean, variance, training, momentum, eps)."""
    view = _features(b, args[0])
    weight, bias, mean, variance, training, momentum, epsilon = args[1:8]
    if not (isinstance(mean, Buffer) and isinstance(variance, Buffer)):
        raise Unsupported("without running statistics")
    learns = claim(b, weight, bias)
    out = Value(TileBuffer(*view.value.buffer.size), needs=learns or view.value.needs, any_halo=True)

    def emit(operation: Operation) -> None:
        x = operation.host.out if operation.host is not None else operation.inputs[0]
        buffer = x.buffer
        saved = operation.kept = b.numbers([0.0] * (len(SAVED) * buffer.channels))
        settings = b.numbers([float(momentum), float(epsilon)])
        if training and operation.host is None:
            _sum_up(b, x)

        def statistics() -> Any:
            return "batch_statistics", BY_ROWS, buffer.channels, {
                **sums_at(x.sums if training else None), "places": buffer.height * buffer.width, "saved": saved,
                "running_mean": b.statistics[mean.name], "running_variance": b.statistics[variance.name],
                "momentum": settings, "epsilon": settings + 1, "training": int(training),
                "weight": value_at(b, weight), "bias": value_at(b, bias),
            }  # fmt: skip

        if operation.host is not None:
            b.emit_first(statistics)
            return

        def write(other: Value | None) -> None:
            rows = NormalisedRows(b, out, buffer, saved, None if other is None else other.buffer)
            if _read_first_in_rows(b, out):
                out.own_rows = rows
            else:
                rows(out.buffer, 0)

        plain = FusedStep.ADD not in operation.fused
        if b.training:
            sums = b.allocate(_GRADIENT_SUMS * buffer.channels)
            normalised = out.normalised = Normalised(x, saved, sums, gates=plain and out.rectified)
            b.backward.append(lambda: gradient(normalised))
            if plain and _read_once(b, out):  # it takes less time to write it again than to keep it
                out.buffer.local = Local.VALUE
                if _takes_rows(next(each for each in b.operations if out in each.inputs)):
                    out.write_rows = NormalisedRows(b, out, buffer, saved)
                else:
                    out.rewrite = lambda: write(None)

        def gradient(normalised: Normalised) -> None:
            if not out.needs:
                return
            grad = b.gradient_of(out)
            if not normalised.summed:
                b.emit(lambda: ("gradient_sums", BY_TILES, buffer.channels, {
                    **buffer.columns_of_kind("in"), **grad.columns_of_kind("grad"), **buffer.sides, "saved": saved,
                    **sums_at(normalised.sums),
                }))  # fmt: skip
            b.emit(lambda: ("gradient_means", BY_ROWS, buffer.channels, {
                **sums_at(normalised.sums), "places": buffer.height * buffer.width, "saved": saved,
                "training": int(training), "weight_gradient": gradient_at(b, weight),
                "bias_gradient": gradient_at(b, bias),
            }))  # fmt: skip
            if not x.needs:
                b.release(out)
            elif _takes_local(b, x) and _takes_rows(next(each for each in b.operations if each.out is x)):
                x.gradient_rows = gradient_rows
            elif _takes_local(b, x):
                x.pending_gradient = lambda: write_gradient(TileBuffer(*x.buffer.layout, local=Local.GRADIENT))
            else:
                write_gradient()

        def gradient_rows() -> WriteRows:
            rows = NormalisedGradientRows(b, buffer, b.gradient_of(out), saved)
            # What is written next into their memory, row by row, follows what is read.
            b.release(out)
            b.forget(out)
            b.forget(x)
            return rows

        def write_gradient(room: TileBuffer | None = None) -> None:
            if room is not None:
                x.grad = b.hold(room)
            target = b.target(x)
            NormalisedGradientRows(b, buffer, b.gradient_of(out), saved)(target.buffer, 0, target)
            b.release(out)
            b.forget(out)
            if room is not None:
                b.forget(x)

        b.emit(statistics)
        if out.write_rows is None:
            b.hold(out.buffer)
            out.pending = write

    # What a product normalises on the way has no gradient.
    step, accepts = (
        None if training or b.training else FusedStep.NORMALISE,
        frozenset({FusedStep.ADD, FusedStep.RECTIFY}),
    )
    b.operations.append(Operation(
        [view.value], out, emit, step, accepts, deferred=True, reads_half=True, takes_half=b.training,
        keeps_half=b.training,
    ))  # fmt: skip
    return View(out, view.flat)


def _sum_up(b: Builder, x: Value) -> None:
    """Have the sums of a value's tiles written: by who writes the value, or by an instruction of their own."""
    if x.sums is not None:
        return
    sums = x.sums = b.allocate(_VALUE_SUMS * x.buffer.channels)
    if not x.summable:
        b.emit(lambda: ("value_sums", BY_TILES, x.buffer.channels, {
            **x.buffer.columns("in"), **x.buffer.sides, **sums_at(sums),
        }))  # fmt: skip


def _read_once(b: Builder, value: Value) -> bool:
    """Whether nothing but a layer that takes a local buffer reads a value."""
    readers = [operation for operation in b.operations if value in operation.inputs]
    return b.local and len(readers) == 1 and readers[0].reads_local and value not in b.outputs


def _read_first_in_rows(b: Builder, value: Value) -> bool:
    """Whether what reads a value first is a layer that may have some rows of it written at a time; nothing else reads
    it unasked."""
    readers = [operation for operation in b.operations if value in operation.inputs]
    asked = all(each.host is None or each.host.deferred for each in readers)
    return b.local and b.training and asked and bool(readers) and _takes_rows(readers[0]) and value not in b.outputs


def _takes_rows(operation: Operation) -> bool:
    return operation.in_rows and not operation.fused


def _takes_local(b: Builder, value: Value) -> bool:
    """Whether nothing but a layer that takes its gradient from a local buffer reads that of a value."""
    writer = next((operation for operation in b.operations if operation.out is value), None)
    plain = b.local and value.uses == 1 and not value.rectified and value.normalised is None and not value.owed
    return plain and writer is not None and writer.host is None and writer.gradient_local


@lowers(aten.group_norm.default)
def group_norm(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """group_norm(x, groups, weight, bias, eps)."""
    weight, bias, epsilon = argument(args, 2, None), argument(args, 3, None), float(argument(args, 4, 1e-5))
    return _grouped(b, args[0], int(args[1]), weight, bias, epsilon)


@lowers(aten.layer_norm.default, arranged=True)
def layer_norm(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """layer_norm(x, shape, weight, bias, eps) over all that an example has, or over each token's features."""
    view, shape = as_view(b, args[0]), tuple(args[1])
    weight, bias, epsilon = argument(args, 2, None), argument(args, 3, None), float(argument(args, 4, 1e-5))
    if view.arranged is not None or shape != view.shape:
        return tokens_norm(b, view, shape, weight, bias, epsilon=epsilon, centred=True)
    if not (weight or bias):  # so that it does not matter in which order numbers lie
        return _grouped(b, View(view.value), 1, weight, bias, epsilon)._replace(flat=view.flat)
    if view.flat:
        return _grouped(b, view, 1, weight, bias, epsilon)
    if any(isinstance(each, Param) and b.leaves[each.name].size < math.prod(shape) for each in (weight, bias)):
        raise Unsupported("with pruned weights")
    # Each place has a weight of its own, as features have.
    found = _grouped(b, View(view.value, flat=True), 1, weight, bias, epsilon)
    return strided(found, lambda each: each.reshaped([TRACED_BATCH, *shape]))


def _features(b: Builder, view: View) -> View:
    """Features of a flattened image as channels of one place; anything else as it is."""
    buffer = view.value.buffer
    return placed(b, view, [Side.EXAMPLE, Side.CHANNEL]) if view.flat and buffer.features > buffer.channels else view


def _grouped(b: Builder, view: View, groups: int, weight: Any, bias: Any, epsilon: float) -> View:
    view = _features(b, view)
    learns = claim(b, weight, bias)
    out = Value(TileBuffer(*view.value.buffer.size), needs=learns or view.value.needs)

    def emit(operation: Operation) -> None:
        (x,) = operation.inputs
        buffer = x.buffer
        b.hold(out.buffer)
        saved = b.allocate(2 * groups)
        number = b.numbers([epsilon])

        def shared() -> dict[str, int]:
            return {
                **buffer.sides, "channels": buffer.channels // groups, "saved": saved.first, "saved_tile": saved.tile,
                "weight": value_at(b, weight),
            }  # fmt: skip

        def gradient() -> None:
            if not out.needs:
                return
            grad = b.gradient_of(out)
            # Where no gradient is wanted, those of weight and bias still are: the rest goes to memory of its own.
            target = b.target(x) if x.needs else GradientTarget(b.allocate(*buffer.layout), False, None)
            b.emit(lambda: ("group_normalise_gradient", SUMS, groups, {
                **buffer.columns("in"), **grad.columns("grad"), **target.buffer.columns("into"), **shared(),
                **target.columns, "weight_gradient": gradient_at(b, weight), "bias_gradient": gradient_at(b, bias),
            }))  # fmt: skip
            b.release(out)

        b.emit(lambda: ("group_normalise", BY_TILES, groups, {
            **buffer.columns("in"), **out.buffer.columns("out"), **shared(), "epsilon": number,
            "bias": value_at(b, bias), "relu": int(out.rectified),
        }))  # fmt: skip
        b.backward.append(gradient)

    b.operations.append(Operation([view.value], out, emit, accepts=frozenset({FusedStep.RECTIFY})))
    return View(out, view.flat)
