"""Truths, which are 1 or 0, and what is chosen by them: masks of attention and of padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder, Operation, Value, View
from lthfunc.sparse.lowerings.broadcasting import combined, laid_out
from lthfunc.sparse.lowerings.interface import Buffer, Lowering, Param, Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view, folded
from lthfunc.sparse.lowerings.placing import whole
from lthfunc.sparse.lowerings.pointwise import COMPARISONS, pointwise
from lthfunc.sparse.tile_buffers import TileBuffer


def _comparison(kind: str) -> Lowering:
    """The lowering of a comparison with a number by its name in PyTorch, or of two values that are whole numbers."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        left, right = args
        if isinstance(right, (int, float)):
            return pointwise(b, left, kind, float(right))
        left, right = as_view(b, left), as_view(b, right)
        if any(view.value.dtype == torch.float32 for view in (left, right)):
            raise Unsupported("of two values that are no whole numbers")
        return pointwise(b, combined(b, *laid_out(b, left, right), "sum", -1.0), kind, 0.0)

    return lowering


for _kind in COMPARISONS:
    lowers(getattr(aten, _kind).Scalar, getattr(aten, _kind).Tensor, arranged=True)(_comparison(_kind))


@lowers(aten.logical_not.default, aten.bitwise_not.default, arranged=True)
def negated(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """~mask."""
    return pointwise(b, _truths(b, args[0]), "eq", 0.0)


@lowers(aten.logical_and.default, aten.bitwise_and.Tensor, aten.__and__.Tensor, arranged=True)
def conjunction(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """mask & other."""
    found = combined(b, *laid_out(b, *(_truths(b, each) for each in args[:2])), "product")
    found.value.dtype = torch.bool
    return found


@lowers(aten.logical_or.default, aten.bitwise_or.Tensor, aten.__or__.Tensor, arranged=True)
def disjunction(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """mask | other."""
    return pointwise(b, combined(b, *laid_out(b, *(_truths(b, each) for each in args[:2])), "sum"), "gt", 0.0)


@lowers(
    aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.masked_fill_.Scalar, aten.masked_fill_.Tensor, arranged=True
)
def masked_fill(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """masked_fill(x, mask, number)."""
    return chosen(b, args[0], kept_of(b, args[1], inverted=True), _number(b, args[2]))


@lowers(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, arranged=True)
def where(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """where(mask, x, y), of which each may be a number."""
    mask, x, y = args
    if isinstance(x, (int, float)) and isinstance(y, (int, float)):
        x = torch.tensor(float(x))
    if _is_number(b, y):
        return chosen(b, x, kept_of(b, mask), _number(b, y))
    if _is_number(b, x):
        return chosen(b, y, kept_of(b, mask, inverted=True), _number(b, x))
    parts = [chosen(b, each, kept_of(b, mask, inverted=other), 0.0) for each, other in ((x, False), (y, True))]
    return combined(b, *laid_out(b, *parts), "sum")


@lowers(aten.to.dtype, aten._to_copy.default, aten.type_as.default, arranged=True)
def converted(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """x.float() of truths and whole numbers, x.long() of anything, and whatever leaves numbers what they are."""
    view = as_view(b, args[0])
    given = argument(args, 1, kwargs.get("dtype"))
    dtype = given.value.dtype if isinstance(given, View) else getattr(given, "dtype", given)
    if dtype in (None, view.value.dtype):
        return view
    if dtype == torch.bool:
        return pointwise(b, view, "ne", 0.0)
    if dtype not in (torch.float32, torch.int64):
        raise Unsupported(f"to {dtype}")
    cuts = dtype == torch.int64 and view.value.dtype == torch.float32
    found = pointwise(b, view, "trunc" if cuts else "scale", 0.0 if cuts else 1.0)
    found.value.dtype = dtype
    return found


def _filled_like(number: float | None) -> Lowering:
    """The lowering of an operation that gives a number for each of another value's; None: the number is an argument."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        view = whole(b, as_view(b, args[0]))
        out = Value(TileBuffer(*view.value.buffer.size), needs=False, dtype=kwargs.get("dtype") or view.value.dtype)
        constant = b.numbers([float(args[1]) if number is None else number])

        def emit(operation: Operation) -> None:
            b.hold(out.buffer)
            b.fill(out.buffer, constant)

        b.operations.append(Operation([], out, emit))
        return view.of(out)

    return lowering


for _operation, _filling in ((aten.zeros_like, 0.0), (aten.ones_like, 1.0), (aten.full_like, None)):
    lowers(_operation.default, arranged=True)(_filled_like(_filling))


def chosen(b: Builder, x: Any, kept: View | Tensor, number: float) -> View:
    """x where `kept` is 1, and a number elsewhere."""
    return combined(b, *laid_out(b, as_view(b, x), kept), "choice", number)


def kept_of(b: Builder, mask: Any, *, inverted: bool = False) -> View | Tensor:
    """A mask as 1 and 0, or the other way round."""
    mask = folded(b, mask)
    if isinstance(mask, Tensor):
        return mask == 0 if inverted else mask
    return negated(b, [mask], {}) if inverted else _truths(b, mask)


def _truths(b: Builder, mask: Any) -> View:
    view = as_view(b, mask)
    if view.value.dtype != torch.bool:
        raise Unsupported("of anything but truths")
    return view


def _is_number(b: Builder, given: Any) -> bool:
    if isinstance(given, (Param, Buffer)) and given.name in b.fixed and b.shapes[given.name]:
        return False
    given = folded(b, given)
    return isinstance(given, (int, float)) or (isinstance(given, Tensor) and not given.ndim)


def _number(b: Builder, given: Any) -> float:
    if not _is_number(b, given):
        raise Unsupported("with anything but a number")
    return float(folded(b, given))
