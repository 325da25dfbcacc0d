"""From a name to a Dataset, and from anybody's tensors to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.data.catalog import DATASETS, Known, canonical, default_data_dir
from lthfunc.data.digits import read_digits
from lthfunc.data.vision import read_vision
from lthfunc.errors import UserError, invalid
from lthfunc.plugins import load_plugin
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Dataset, Split

#: The split is the same for every seed, so that replicates are chosen by the same images.
_SPLIT_SEED = 0


def load(name: str, data_dir: str | Path | None = None, download: bool = True) -> Dataset:
    """A data set of the catalogue, or what ``package.module:function`` returns when called without arguments.

    Images are float32 (n, channels, height, width), normalised with the data set's own constants; targets int64.
    The validation split is drawn from the training images by a fixed permutation.

    Raises UserError where the name is unknown, the files are missing and can't be downloaded, or a file is broken.
    """
    name = canonical(name)
    if name not in DATASETS:
        data = load_plugin("--dataset", name)()
        if not isinstance(data, Dataset):
            raise UserError(f"--dataset: {name!r} returned a {type(data).__name__}, not an lthfunc Dataset")
        return data
    known = DATASETS[name]
    if name == "digits":
        images, targets = read_digits()
        order = permutation(len(images), _SPLIT_SEED, "test-split", name)
        images, targets = images[order], targets[order]
        train, test = (
            (images[known.test :], targets[known.test :]),
            (images[: known.test], targets[: known.test]),
        )
    else:
        train, test = read_vision(name, Path(data_dir) if data_dir else default_data_dir(), download=download)
    return from_tensors(
        name,
        (_normalised(train[0], known), train[1]),
        (_normalised(test[0], known), test[1]),
        val=known.val,
        classes=known.classes,
    )


def from_tensors(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    val: int,
    classes: int | None = None,
) -> Dataset:
    """A Dataset from (inputs, integer targets) pairs; `val` training examples are held out by a fixed permutation.

    Raises UserError where lengths differ or nothing is left to train on.
    """
    for option, (inputs, targets) in (("train", train), ("test", test)):
        if len(inputs) != len(targets):
            raise UserError(f"{option}: {len(inputs)} inputs but {len(targets)} targets")
    size = len(train[0])
    if not 0 < val < size:
        raise invalid("val", val, f"a number of examples from 1 to {size - 1}")
    order = permutation(size, _SPLIT_SEED, "val-split", name)
    held, rest = order[:val], order[val:]
    return Dataset(
        name=name,
        train=Split(train[0][rest], train[1][rest]),
        val=Split(train[0][held], train[1][held]),
        test=Split(*test),
        classes=classes if classes is not None else int(max(train[1].max(), test[1].max())) + 1,
    )


def from_map_style(name: str, train: Sequence[Any], test: Sequence[Any], *, val: int) -> Dataset:
    """A Dataset from two map-style torch data sets of (input tensor, integer target) pairs, read into memory."""

    def stacked(examples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        pairs = [examples[i] for i in range(len(examples))]
        return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])

    return from_tensors(name, stacked(train), stacked(test), val=val)


def _normalised(images: Tensor, known: Known) -> Tensor:
    """uint8 or [0, 1] pixels, to zero mean and unit variance with the data set's constants."""
    pixels = images.float().div_(255) if images.dtype == torch.uint8 else images
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (known.mean, known.std))
    return pixels.sub(mean).div_(std)
