"""Operations on (batch, channels, length): what those of images do to images of one row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lthfunc.sparse.axes import Side
from lthfunc.sparse.builder import Builder, View
from lthfunc.sparse.lowerings.interface import LOWERINGS, Lowering, Unsupported, argument, aten, lowers
from lthfunc.sparse.lowerings.layers import convolved
from lthfunc.sparse.lowerings.normalisation import batch_norm as batch_norm
from lthfunc.sparse.lowerings.parameters import as_view
from lthfunc.sparse.lowerings.placing import placed, plain_view
from lthfunc.sparse.lowerings.pooling import adaptive_average_pool, adaptive_max_pool, average_pool, max_pool
from lthfunc.sparse.lowerings.resampling import interpolation
from lthfunc.sparse.lowerings.shapes import pad as pad
from lthfunc.sparse.lowerings.transposed import transposed
from lthfunc.sparse.views import arranged_view, plain_arrangement


def as_image(b: Builder, given: Any) -> View:
    """(batch, channels, length) as an image of one row: as it lies, or a copy."""
    view = as_view(b, given)
    sizes = view.arrangement.sizes
    if len(sizes) != 3 or [axis.side for axis in view.arrangement.dimensions[0]] != [Side.EXAMPLE]:
        raise Unsupported("of other dimensions than (batch, channels, length)")
    one_row = view.value.buffer.size == (sizes[1], 1, sizes[2]) and view == as_sequence(View(view.value))
    return View((view if one_row else placed(b, view, [Side.EXAMPLE, Side.CHANNEL, Side.COLUMN])).value)


def as_sequence(view: View) -> View:
    """An image of one row as (batch, channels, length)."""
    arrangement = plain_arrangement(view.value.buffer, flat=False)
    batch, channels, _, length = arrangement.dimensions
    return arranged_view(view.value, arrangement._replace(dimensions=(batch, channels, length)))


def _across(given: Any, other: int) -> tuple[int, int]:
    """A setting of the length as one of rows and columns."""
    return other, int(given[0] if isinstance(given, (list, tuple)) else given)


@lowers(aten.conv1d.default, aten.conv1d.padding, arranged=True)
def convolution(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """conv1d with stride, padding, dilation and groups."""
    padding = argument(args, 4, 0)
    return as_sequence(convolved(
        b, as_image(b, args[0]), args[1], argument(args, 2, None), _across(argument(args, 3, 1), 1),
        padding if isinstance(padding, str) else _across(padding, 0), _across(argument(args, 5, 1), 1),
        int(argument(args, 6, 1)),
    ))  # fmt: skip


@lowers(aten.conv_transpose1d.default, arranged=True)
def transposed_convolution(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """conv_transpose1d with stride, padding, output padding, groups and dilation."""
    stride, padding, extra = (_across(argument(args, 3 + k, 1 - bool(k)), 1 - bool(k)) for k in range(3))
    return as_sequence(transposed(
        b, as_image(b, args[0]), args[1], argument(args, 2, None), stride, padding, extra, int(argument(args, 6, 1)),
        _across(argument(args, 7, 1), 1),
    ))  # fmt: skip


@lowers(aten.max_pool1d.default, arranged=True)
def maxima(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """max_pool1d."""
    kernel, stride = _across(args[1], 1), argument(args, 2, None) or args[1]
    given = [kernel, _across(stride, 1), _across(argument(args, 3, 0), 0), _across(argument(args, 4, 1), 1)]
    return as_sequence(max_pool(b, [as_image(b, args[0]), *given, argument(args, 5, False)], {}))


@lowers(aten.adaptive_max_pool1d.default, arranged=True)
def adaptive_maxima(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> list[View | None]:
    """adaptive_max_pool1d to a size that divides the length."""
    found, _ = adaptive_max_pool(b, [as_image(b, args[0]), [1, *args[1]]], {})
    return [as_sequence(found), None]


@lowers(aten.avg_pool1d.default, arranged=True)
def averages(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """avg_pool1d."""
    stride = argument(args, 2, None) or args[1]
    given = [_across(args[1], 1), _across(stride, 1), _across(argument(args, 3, 0), 0), *args[4:6]]
    return as_sequence(average_pool(b, [as_image(b, args[0]), *given], {}))


@lowers(aten.adaptive_avg_pool1d.default, arranged=True)
def adaptive_averages(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
    """adaptive_avg_pool1d to any size."""
    return as_sequence(adaptive_average_pool(b, [as_image(b, args[0]), _across(args[1], 1)], {}))


def _of_both(flat: Any, *, aligns: bool) -> Lowering:
    """The interpolation of a sequence, which PyTorch's operation `flat` interpolates."""
    images = interpolation(flat, aligns=aligns)

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        view, sizes, *rest = args
        scales = rest[-1] if rest else None
        both = None if sizes is None else [1, *sizes], None if scales is None else [1.0, *scales]
        return as_sequence(images(b, [as_image(b, view), both[0], *([rest[0]] if aligns else []), both[1]], {}))

    return lowering


for _operation, _aligns in (
    (aten.upsample_nearest1d.vec, False), (aten._upsample_nearest_exact1d.vec, False),
    (aten.upsample_linear1d.vec, True),
):  # fmt: skip
    lowers(_operation, arranged=True)(_of_both(_operation, aligns=_aligns))


def _same_arguments(args: list[Any]) -> list[Any]:
    return args


def _amounts(args: list[Any]) -> list[Any]:
    """Of padding, with none of rows between that of the length and that of channels."""
    return [args[0], [*args[1][:2], 0, 0, *args[1][2:]], *args[2:]]


def _of_images_too(images: Lowering, lifted: Callable[[list[Any]], list[Any]]) -> Lowering:
    """The lowering of an operation that PyTorch has for images and sequences alike."""

    def lowering(b: Builder, args: list[Any], kwargs: dict[str, Any]) -> View:
        view, *rest = args
        if not isinstance(view, View):
            raise Unsupported("of a parameter or buffer")
        if len(view.arrangement.sizes) != 3:
            found: View = images(b, [plain_view(b, view), *rest], kwargs)
            return found
        return as_sequence(images(b, lifted([as_image(b, view), *rest]), kwargs))

    return lowering


for _operation, _lifted in (
    (aten.batch_norm.default, _same_arguments), (aten.group_norm.default, _same_arguments),
    (aten.pad.default, _amounts), (aten.constant_pad_nd.default, _amounts),
):  # fmt: skip
    lowers(_operation, arranged=True)(_of_images_too(LOWERINGS[_operation], _lifted))
