"""Dimensions merged, divided, put in another order, selected and repeated: strides, of which no memory moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lthfunc.sparse.axes import Arrangement, Axis, NotStridesError, Side, merged
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.capture import TRACED_BATCH
from lthfunc.sparse.lowerings.interface import Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.parameters import as_view, shape_of
from lthfunc.sparse.lowerings.placing import lying, placed
from lthfunc.sparse.views import arranged_view


@lowers(aten.alias.default, aten.contiguous.default, aten.clone.default, arranged=True)
def same(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """What changes nothing here: identity, contiguous, dropout in evaluation."""
    return as_view(b, args[0])


@lowers(aten.flatten.using_ints, arranged=True)
def flatten(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """flatten(start, end)."""
    view = as_view(b, args[0])
    sizes = view.arrangement.sizes
    start, end = (argument(args, number, default) % len(sizes) for number, default in ((1, 0), (2, -1)))
    return strided(view, lambda each: each.reshaped([*sizes[:start], -1, *sizes[end + 1 :]]))


@lowers(aten.view.default, aten.reshape.default, aten._unsafe_view.default, arranged=True)
def reshape(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """view and reshape."""
    return strided_or_copied(b, as_view(b, args[0]), lambda each: each.reshaped(args[1]))


@lowers(aten.view_as.default, aten.reshape_as.default, arranged=True)
def reshape_as(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """view_as(other) and reshape_as(other)."""
    found: View = reshape(b, [args[0], sizes_of(b, args[1])], {})
    return found


@lowers(aten.unflatten.int, arranged=True)
def unflatten(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """unflatten(dim, sizes)."""
    view = as_view(b, args[0])
    sizes = list(view.arrangement.sizes)
    dim = args[1] % len(sizes)
    given = list(args[2])
    if -1 in given:  # only one size may be open, and it may be this one
        given = list(Arrangement((view.arrangement.dimensions[dim],)).reshaped(given).sizes)
    return strided(view, lambda each: each.reshaped([*sizes[:dim], *given, *sizes[dim + 1 :]]))


@lowers(aten.transpose.int, aten.swapaxes.default, aten.t.default, aten.mT.default, arranged=True)
def transpose(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """transpose(a, b); t and mT of the last two dimensions."""
    view = as_view(b, args[0])
    order = list(range(len(view.arrangement.dimensions)))
    if len(order) < 2:
        return view  # as t gives it
    first, second = argument(args, 1, -2), argument(args, 2, -1)
    order[first], order[second] = order[second], order[first]
    return strided(view, lambda each: each.permuted(order))


@lowers(aten.permute.default, arranged=True)
def permute(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """permute(order)."""
    return strided(as_view(b, args[0]), lambda each: each.permuted(args[1]))


@lowers(aten.movedim.int, arranged=True)
def movedim(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """movedim(from, to)."""
    view = as_view(b, args[0])
    order = list(range(len(view.arrangement.dimensions)))
    source, target = args[1] % len(order), args[2] % len(order)
    order.insert(target, order.pop(source))
    return strided(view, lambda each: each.permuted(order))


@lowers(aten.unsqueeze.default, arranged=True)
def unsqueeze(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """unsqueeze(dim)."""
    view = as_view(b, args[0])
    dim = args[1] % (len(view.arrangement.dimensions) + 1)
    return strided(view, lambda each: each.with_one(dim))


@lowers(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, arranged=True)
def squeeze(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """squeeze(), squeeze(dim), squeeze(dims)."""
    view = as_view(b, args[0])
    sizes = view.arrangement.sizes
    given = argument(args, 1, range(len(sizes)))
    dims = {dim % len(sizes) for dim in ([given] if isinstance(given, int) else given)}
    kept = [size for dim, size in enumerate(sizes) if dim not in dims or size != 1]
    return strided(view, lambda each: each.reshaped(kept))


@lowers(aten.select.int, arranged=True)
def select(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """select(dim, index)."""
    view = as_view(b, args[0])
    dim, size = _dimension(view, args[1])
    return strided(view, lambda each: each.part(dim, args[2] % size, 1).without(dim))


@lowers(aten.expand.default, arranged=True)
def expand(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """expand(sizes)."""
    return strided(as_view(b, args[0]), lambda each: each.repeated(args[1], TRACED_BATCH))


@lowers(aten.expand_as.default, arranged=True)
def expand_as(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """expand_as(other)."""
    found: View = expand(b, [args[0], sizes_of(b, args[1])], {})
    return found


@lowers(aten.repeat_interleave.self_int, arranged=True)
def repeat_interleave(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """repeat_interleave(times, dim): each place so many times, one after the other."""
    view, times, dim = as_view(b, args[0]), args[1], argument(args, 2, kwargs.get("dim"))
    if dim is None:
        raise Unsupported("of all dimensions as one")
    dims = list(view.arrangement.dimensions)
    dims[dim] = merged((*dims[dim], Axis(Side.REPEATED, times)))
    return strided(view, lambda each: each._replace(dimensions=tuple(dims)))


@lowers(aten.repeat.default, arranged=True)
def repeat(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """repeat(times of each dimension): all of its places so many times."""
    view = as_view(b, args[0])
    old = view.arrangement.dimensions
    dims = [*[()] * (len(args[1]) - len(old)), *old]
    has_batch = any(axis.side is Side.EXAMPLE for axis in view.arrangement.axes)
    for dim, times in enumerate(args[1]):
        if times != 1:
            batch = dim == 0 and times == TRACED_BATCH and not has_batch
            dims[dim] = (Axis(Side.EXAMPLE if batch else Side.REPEATED, times), *dims[dim])
    return strided(view, lambda each: each._replace(dimensions=tuple(dims)))


@lowers(aten.chunk.default, arranged=True)
def chunk(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View]:
    """chunk(chunks, dim)."""
    view = as_view(b, args[0])
    dim, size = _dimension(view, argument(args, 2, 0))
    return _split(view, dim, _evenly(size, -(-size // args[1])))


@lowers(aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes, arranged=True)
def split(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View]:
    """split(size, dim), split(sizes, dim)."""
    view = as_view(b, args[0])
    dim, size = _dimension(view, argument(args, 2, 0))
    return _split(view, dim, _evenly(size, args[1]) if isinstance(args[1], int) else args[1])


@lowers(aten.unbind.int, arranged=True)
def unbind(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View]:
    """unbind(dim)."""
    view = as_view(b, args[0])
    dim, size = _dimension(view, argument(args, 1, 0))
    return [strided(view, lambda each, at=at: each.part(dim, at, 1).without(dim)) for at in range(size)]  # type: ignore[misc]


def sizes_of(b: Builder, given: Any) -> tuple[int, ...]:
    """Of a value, parameter, buffer or constant."""
    return given.arrangement.sizes if isinstance(given, View) else shape_of(b, given)


def sliced(view: View, dim: int, start: int, count: int, step: int) -> View:
    """Every step-th place of a dimension from `start` on, `count` of them."""
    return strided(view, lambda each: each.part(dim, start, count, step))


def strided(view: View, change: Callable[[Arrangement], Arrangement]) -> View:
    """The same value in another arrangement. Raises Unsupported where that cannot be expressed by strides."""
    try:
        return arranged_view(view.value, change(view.arrangement))
    except NotStridesError as error:
        raise Unsupported("across dimensions that don't lie one behind the other, or of the batch") from error


def strided_or_copied(b: Builder, view: View, change: Callable[[Arrangement], Arrangement]) -> View:
    """The same of the value, or else of a copy whose dimensions lie one behind the other where the batch is none of
    them: the last one along channels if that is enough, or all along columns."""
    count = len(view.arrangement.dimensions)
    for sides in (None, [*[Side.COLUMN] * (count - 1), Side.CHANNEL], [Side.COLUMN] * count):
        arrangement = view.arrangement if sides is None else lying(view.arrangement, sides)[0]
        try:
            change(arrangement)
        except NotStridesError:
            continue
        return strided(view if sides is None else placed(b, view, sides), change)
    return strided(view, change)  # which says why not


def _dimension(view: View, dim: int) -> tuple[int, int]:
    """(its number, its size)."""
    sizes = view.arrangement.sizes
    return dim % len(sizes), sizes[dim]


def _evenly(size: int, each: int) -> list[int]:
    return [min(each, size - start) for start in range(0, size, each)]


def _split(view: View, dim: int, sizes: Sequence[int]) -> list[View]:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    return [sliced(view, dim, start, size, 1) for start, size in zip(starts, sizes, strict=True)]
