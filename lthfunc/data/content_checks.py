"""One check of a data set's contents, whatever its source: all splits together, each fault in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.printable import dtype_name
from lthfunc.trees.dataset_checks import check_data, check_scale
from lthfunc.trees.types import IGNORED_PIXEL, Dataset, Scale

#: Bytes of floats to check at a time.
_CHUNK = 1 << 26


class NamedSplit(NamedTuple):
    """A part of the examples, and what to call its inputs and its targets."""

    x: Tensor
    y: Tensor
    x_name: str
    y_name: str


def checked_dataset(data: Any, option: str = "data") -> Dataset:
    """The data set, if it is consistent: shapes, types, numbers and classes of all its splits.

    Inputs that are mapped from a file are not read for it. Raises UserError, which begins with `option`.
    """
    found = check_data(data, option)
    if not isinstance(found.classes, int) or found.classes < 1:
        raise UserError(f"{option}: its classes are {found.classes!r}, not a whole number above 0")
    pairs = [
        NamedSplit(split.x, split.y, name, name)
        for name, split in zip(("train", "val", "test"), found[1:4], strict=True)
    ]
    try:
        check_pairs(pairs, found.classes, found.labels, found.scale, mapped=found.mapped)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if found.classes == 1 and not found.train.y.is_floating_point():
        raise UserError(f"{option}: all targets are 0; at least two classes are needed")
    return found


def check_pairs(
    pairs: Sequence[NamedSplit],
    classes: int | None,
    labels: Sequence[str] = (),
    scale: Scale | None = None,
    *,
    mapped: bool = False,
) -> int:
    """The number of outputs that a network needs for these splits. Raises UserError where they are invalid."""
    first = pairs[0]
    for pair in pairs:
        _check_inputs(pair, first, scale, mapped)
        _check_targets(pair, first)
    if scale is not None:
        check_scale(scale, tuple(first.x.shape[1:]))
    if first.y.is_floating_point():
        if classes not in (None, first.y.shape[1]):
            raise invalid("classes", classes, f"{first.y.shape[1]}, the numbers of a target")
        return first.y.shape[1]
    return _classes(pairs, classes, labels)


def _check_inputs(pair: NamedSplit, first: NamedSplit, scale: Scale | None, mapped: bool) -> None:
    x, name = pair.x, pair.x_name
    if x.layout is not torch.strided or x.is_quantized or x.dtype.is_complex:
        kind = "complex" if x.dtype.is_complex else "quantized" if x.is_quantized else "sparse"
        raise UserError(f"{name}: inputs are {kind} (expected dense real numbers)")
    if len(x) != len(pair.y):
        if name != pair.y_name:
            raise UserError(f"{name} has {len(x)} examples and {pair.y_name} {len(pair.y)}")
        raise UserError(f"{name}: {len(x)} inputs but {len(pair.y)} targets")
    if not len(x):
        raise UserError(f"{name}: no examples")
    if not x[0].numel():
        raise UserError(f"{name}: inputs of shape {tuple(x.shape[1:])} are empty")
    if x.ndim == 1 and x.is_floating_point():
        raise UserError(
            f"{name}: inputs of shape {tuple(x.shape)} have no dimension besides the examples'; add one with x[:, None]"
        )
    if x.dtype is torch.bool and scale is None:
        raise UserError(f"{name}: inputs are bool, but networks need numbers; convert them with x.float()")
    if x.dtype != first.x.dtype:
        raise UserError(
            f"{name}: inputs are {dtype_name(x.dtype)}, but those of {first.x_name} are {dtype_name(first.x.dtype)}"
        )
    _check_shapes("inputs", name, x, first.x_name, first.x)
    if x.is_floating_point() and not mapped:
        _check_finite(x, name, "input")


def _check_targets(pair: NamedSplit, first: NamedSplit) -> None:
    y, name = pair.y, pair.y_name
    if y.is_floating_point() != first.y.is_floating_point():
        kinds = [("numbers" if each.is_floating_point() else "classes") for each in (y, first.y)]
        raise UserError(
            f"{name}: targets are {kinds[0]} ({dtype_name(y.dtype)}), but those of {first.y_name} are {kinds[1]}"
        )
    _check_shapes("targets", name, y, first.y_name, first.y)
    if y.is_floating_point():
        if y.ndim < 2 or not y[0].numel():
            raise UserError(f"{name}: targets of shape {tuple(y.shape)} (expected (examples, numbers))")
        _check_finite(y, name, "target")
    elif y.dtype.is_complex:
        raise UserError(f"{name}: targets are complex (expected classes or real numbers)")
    elif y.dtype is not torch.int64:
        raise UserError(f"{name}: targets are {dtype_name(y.dtype)} (expected int64 classes; y.long() converts them)")
    elif y.ndim == 2 and y.shape[1] > 1 and y.shape != pair.x.shape[:2] and is_one_hot(y):
        raise UserError(f"{name}: targets are one-hot (expected class numbers; y.argmax(1) gives them)")


def _check_shapes(what: str, name: str, mine: Tensor, first_name: str, first: Tensor) -> None:
    here, there = tuple(mine.shape[1:]), tuple(first.shape[1:])
    if here != there:
        raise UserError(f"{name}: {what} of shape {here}, but those of {first_name} have {there}")


def is_one_hot(y: Tensor) -> bool:
    """Whether each row of targets (n, numbers) has one 1, and otherwise zeros."""
    return bool(((y == 0) | (y == 1)).all()) and bool((y.sum(1) == 1).all())


def _check_finite(values: Tensor, name: str, what: str) -> None:
    each = max(1, _CHUNK // max(1, values[0].nbytes))
    for start in range(0, len(values), each):
        bad = ~values[start : start + each].isfinite()
        if bad.any():
            where = int(bad.flatten(1).any(1).nonzero()[0]) if bad.ndim > 1 else int(bad.nonzero()[0])
            value = float(values[start + where][bad[where]].flatten()[0])
            place = f"{value} in the {what} of example {start + where}"
            raise UserError(f"{name} holds numbers that are not finite ({place})")


def _classes(pairs: Sequence[NamedSplit], given: int | None, labels: Sequence[str]) -> int:
    """The number of classes, to which every target must belong."""
    if given is not None and labels and len(labels) != given:
        raise invalid("labels", f"{len(labels)} names", f"one for each of {given} classes")
    ignored = _ignored(pairs[0].y)
    ends = [_ends(part) for pair in pairs for _, part in _chunks(pair.y, ignored)]
    least, most, count = min(ends)[0], max(end for _, end in ends), sum(pair.y.numel() for pair in pairs)
    classes = given or len(labels) or 1 + max(0, most)
    if least < 0 or most >= classes:
        name, number, target = _first_outside(pairs, classes, ignored)
        raise UserError(
            f"{name}: target {target} of example {number} is outside the {classes} classes, 0 to {classes - 1}"
        )
    if given is None and not labels:
        if least == 1 and pairs[0].y.ndim == 1:
            raise UserError(
                f"{pairs[0].y_name}: classes are numbered from 1 to {most}, and class 0 has no example; subtract 1, or "
                f"pass classes={classes}"
            )
        if classes > count:
            raise UserError(
                f"{pairs[0].y_name}: a target of {most:,} makes {classes:,} classes of {count:,} targets; number them "
                f"from 0, or pass classes={classes}"
            )
    return classes


def check_classes(y: Tensor, classes: int | None, where: str) -> None:
    """Raise UserError for a target of some examples that is none of the classes. classes: None for other targets."""
    if classes is None or not y.numel():
        return
    ends = [_ends(part) for _, part in _chunks(y, _ignored(y))]
    least, most = min(ends)[0], max(end for _, end in ends)
    if least < 0 or most >= classes:
        wrong = least if least < 0 else most
        raise UserError(f"{where}: target {wrong} is outside the {classes} classes, 0 to {classes - 1}")


def _chunks(y: Tensor, ignored: int | None) -> Iterator[tuple[int, Tensor]]:
    """(the first example, targets) of some examples at a time, those that are ignored as class 0."""
    size = max(1, _CHUNK // max(1, y[0].nbytes))
    for start in range(0, len(y), size):
        part = y[start : start + size]
        yield start, part if ignored is None else part.where(part != ignored, 0)


def _ignored(y: Tensor) -> int | None:
    """The target of pixels that have no class."""
    return IGNORED_PIXEL if y.ndim == 3 else None


def _ends(y: Tensor) -> tuple[int, int]:
    least, most = y.aminmax()
    return int(least), int(most)


def _first_outside(pairs: Sequence[NamedSplit], classes: int, ignored: int | None) -> tuple[str, int, int]:
    """(the name of the targets, the example, its target) of the first target that is none of the classes."""
    for pair in pairs:
        for start, part in _chunks(pair.y, ignored):
            wrong = ((part < 0) | (part >= classes)).nonzero()
            if len(wrong):
                return pair.y_name, start + int(wrong[0, 0]), int(part[tuple(wrong[0].tolist())])
    raise AssertionError("all targets are classes")
