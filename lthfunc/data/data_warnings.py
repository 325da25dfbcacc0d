"""Properties of a data set that are rarely intended, but cannot be refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lthfunc.data.content_checks import is_one_hot
from lthfunc.printable import dtype_name
from lthfunc.trees.types import Dataset

#: The most examples to look at, and the most bytes.
_LOOK, _BYTES = 10_000, 1 << 24
#: More distinct values than this are measurements, not classes.
_KINDS = 100
#: The most channels of an image; a longer dimension consists of pixels.
_CHANNELS = 4
#: The ratio of two splits' mean magnitudes from which on they must have been scaled differently.
_OTHER_SCALE = 20


class DataWarning(UserWarning):
    """A data set that works, but may not be what was intended."""


def find_warnings(data: Dataset) -> tuple[str, ...]:
    """A line for each property of `data` that is rarely intended, found in its first training examples.

    >>> x, y = torch.randn(9, 4), torch.tensor([0.0, 1.0, 1.0] * 3)
    >>> data = lf.data.load("planted")._replace(train=lf.Split(x, y[:, None]))
    >>> lf.data.find_warnings(data)[0][:45]
    'targets are whole numbers stored as floats, a'
    """
    look = max(1, min(_LOOK, _BYTES // max(1, data.train.x[0].nbytes)))
    x, y = data.train.x[:look], data.train.y[:look]
    found = []
    if x.is_floating_point() and data.scale is None and not data.parts and _whole(x) and 1 < float(x.max()) <= 255:
        found.append(
            f"inputs are whole numbers from 0 to {float(x.max()):g} stored as floats, and networks get them as they "
            "are; pixels stored as uint8 are scaled"
        )
    if x.dtype is torch.float64 and data.scale is None:
        found.append(
            "inputs are float64, and networks are float32 unless they were made otherwise; x.float() converts them"
        )
    if not data.parts and len(data.shape) == 3 and data.shape[2] <= _CHANNELS < min(data.shape[:2]):
        found.append(
            f"inputs of shape {data.shape} are taken as {data.shape[0]} channels of {data.shape[1]}×{data.shape[2]}; "
            "where channels come last, x.transpose(0, 3, 1, 2) (permute in PyTorch) puts them first"
        )
    if x.is_floating_point() and data.scale is None:
        found += _of_other_scales(data, look)
    if data.tokens and x.ndim > 2:
        found.append(
            f"inputs are {dtype_name(x.dtype)} without a scale, which are tokens for an embedding; a "
            "scale makes pixels of them"
        )
    if y.ndim == 1 and data.stream is None:
        trained = set(data.train.y.tolist())
        for name, split in (("val", data.val), ("test", data.test)):
            if more := sorted(set(split.y.tolist()) - trained):
                some = ", ".join(map(data.class_name, more[:5])) + (" …" if len(more) > 5 else "")
                found.append(f"no training example is of {len(more)} of the classes in {name}: {some}")
    if y.is_floating_point():
        still = None if data.stream else (data.train.y == data.train.y[:1]).flatten(1).all(0)
        if still is not None and still.any():
            found.append(
                f"target number {int(still.nonzero()[0])} is the same in every training example, so R² is undefined"
            )
        if y.shape[1] > 1 and is_one_hot(y):
            found.append("targets are one-hot, and treated as numbers; y.argmax(1) makes classes of them")
        elif y.shape[1] == 1 and _whole(y) and len(set(y.flatten().tolist())) <= _KINDS:
            found.append(
                "targets are whole numbers stored as floats, and treated as numbers to predict; classes are "
                "stored as integers"
            )
    return tuple(found)


def _of_other_scales(data: Dataset, look: int) -> Iterator[str]:
    mine = float(data.train.x[:look].abs().mean())
    for name, split in (("val", data.val), ("test", data.test)):
        theirs = float(split.x[:look].abs().mean())
        if mine and theirs and max(mine / theirs, theirs / mine) > _OTHER_SCALE:
            yield (
                f"inputs of {name} have a mean magnitude of {theirs:.3g}, those of train of {mine:.3g}; "
                "scale all splits alike"
            )


def with_warnings(data: Dataset) -> Dataset:
    """The data set, after a warning for each of `find_warnings`."""
    for hint in find_warnings(data):
        warnings.warn(f"{data.name}: {hint}", DataWarning, stacklevel=3)
    return data


@contextmanager
def without_data_warnings() -> Iterator[None]:
    """Read data sets without warnings in the block, where the caller prints `find_warnings` itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        yield


def _whole(values: Tensor) -> bool:
    return bool((values >= 0).all()) and bool((values == values.round()).all())
