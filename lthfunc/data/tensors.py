"""Tensors as a Dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.data.as_tensors import Inputs, inputs_of, targets_of
from lthfunc.data.content_checks import NamedSplit, check_pairs
from lthfunc.data.data_warnings import with_warnings
from lthfunc.errors import UserError, invalid
from lthfunc.printable import a_or_an
from lthfunc.trees.dataset_checks import describe_data
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Dataset, Scale, Split

#: The split is the same for every seed, so that replicates are validated on the same examples.
_SPLIT_SEED = 0
#: Bytes of pixels to take a mean of at a time.
_CHUNK = 1 << 26


@public
def from_tensors(
    name: str,
    train: tuple[Inputs, Tensor],
    test: tuple[Inputs, Tensor],
    *,
    val: int,
    classes: int | None = None,
    scale: Scale | None = None,
    labels: Sequence[str] = (),
) -> Dataset:
    """Make a data set of (inputs, targets) pairs, holding out `val` training examples by a fixed permutation.

    name: of the data set. train, test: pairs. Inputs are floats ready for the network, int64 tokens, or anything that
    `scale` turns into floats (uint8 pixels); several inputs come as a tuple or by name. Targets are class numbers (n,),
    one per token (n, length) or per pixel (n, height, width), where 255 is a pixel without a class; or floats (n,) or
    (n, outputs) for regression, with `classes` the number of outputs.
    NumPy arrays and lists of numbers are accepted, float64 as float32. labels: the names of classes.

    Returns the data set. Raises UserError where lengths, shapes or types differ, a number is not finite, a target is
    not a class, or nothing is left to train on. Warns (`DataWarning`) of what is rarely intended.

    >>> data = lf.data.from_tensors("mine", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> len(data.train.x), len(data.val.x), data.classes
    (6, 3, 2)
    """
    return with_warnings(make_dataset(name, train, test, val=val, classes=classes, scale=scale, labels=labels))


def make_dataset(
    name: str,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    val: int,
    held: tuple[Any, Any] | None = None,
    classes: int | None = None,
    scale: Scale | None = None,
    labels: Sequence[str] = (),
    called: Mapping[str, tuple[str, str]] | None = None,
) -> Dataset:
    """`from_tensors`, without its warnings.

    held: the validation split, if it is a set of its own. called: what messages call the inputs and the targets of
    train, test and held.
    """
    given = {"train": train, "test": test} | ({"val": held} if held is not None else {})
    names = {part: (called or {}).get(part, (part, part)) for part in given}
    pairs: list[NamedSplit] = []
    parts: tuple[Any, ...] = ()
    for part, value in given.items():
        x_name, y_name = names[part]
        inputs, targets = _pair(value, part)
        x, found = inputs_of(inputs, x_name)
        if pairs and found != parts:
            raise UserError(
                f"{x_name}: its inputs have other shapes, dtypes or names than those of {names['train'][0]}"
            )
        parts = found
        pairs.append(NamedSplit(x, targets_of(targets, y_name, x), x_name, y_name))
    outputs = check_pairs(pairs, classes, labels, scale)
    (x, y, *_), tested = pairs[0], pairs[1]
    if held is None:
        size = len(x)
        if size < 2:
            raise UserError(f"{names['train'][0]}: one example is too few to hold some out for validation")
        if isinstance(val, bool) or not isinstance(val, int) or not 0 < val < size:
            raise invalid("val", val, f"a number of examples from 1 to {size - 1}")
        order = permutation(size, _SPLIT_SEED, "val-split", name)
        training, validation = Split(x[order[val:]], y[order[val:]]), Split(x[order[:val]], y[order[:val]])
    else:
        training, validation = Split(x, y), Split(pairs[2].x, pairs[2].y)
    test_split = Split(tested.x, tested.y)
    return Dataset(name, training, validation, test_split, outputs, scale, parts=parts, labels=tuple(labels))


def _pair(value: Any, part: str) -> tuple[Any, Any]:
    """(inputs, targets). Raises UserError for anything else, such as a tensor without its targets."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return value[0], value[1]
    if isinstance(value, Dataset):
        raise UserError(f"{part}: invalid value: a Dataset (expected one of its splits, data.train or data.test)")
    sized = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    map_style = sized and not hasattr(value, "dtype") and not isinstance(value, (tuple, list))
    how = "; lf.data.from_dataset takes a data set of examples" if map_style else ""
    raise UserError(f"{part}: invalid value: {a_or_an(describe_data(value))} (expected a pair (inputs, targets){how})")


def scale_of(x: Tensor) -> Scale:
    """The normalisation of uint8 pixels (n, channels, ...): mean and deviation of pixel / 255, per channel."""
    total = torch.zeros(2, x.shape[1], dtype=torch.float64)
    each = max(1, _CHUNK // max(1, 8 * x[:1].numel()))
    for part in torch.split(x, each):
        pixels = part.double().transpose(0, 1).flatten(1) / 255
        total += torch.stack([pixels.sum(1), pixels.square().sum(1)])
    mean, square = total / (x.numel() // x.shape[1])
    deviation = (square - mean.square()).clamp(min=0).sqrt()
    return Scale(255.0, tuple(mean.tolist()), tuple(float(d) or 1.0 for d in deviation))


def split_indices(size: int, shares: Sequence[float], name: str) -> list[Tensor]:
    """Indices 0 … size-1 shuffled by a fixed permutation: one part for each share, and the remainder.

    shares: between 0 and 1, or whole numbers of examples. Raises UserError where no remainder is left.
    """
    order = permutation(size, _SPLIT_SEED, "test-split", name)
    counts = [share if isinstance(share, int) else max(1, round(size * share)) for share in shares]
    if sum(counts) >= size:
        raise UserError(f"dataset: {name!r} has {size} examples, too few for validation and test splits")
    return list(torch.split(order, [*counts, size - sum(counts)]))
