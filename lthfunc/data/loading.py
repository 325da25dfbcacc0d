"""From a name to a Dataset, and from anybody's tensors to one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.data.catalog import DATASETS, SUFFIX, Known, canonical, default_data_dir
from lthfunc.data.digits import read_digits
from lthfunc.data.mapped import open_mapped
from lthfunc.errors import UserError, invalid
from lthfunc.plugins import load_plugin
from lthfunc.trees.ops import scaled
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Dataset, Scale, Split

#: The split is the same for every seed, so that replicates are chosen by the same images.
_SPLIT_SEED = 0


def load(name: str, data_dir: str | Path | None = None, download: bool = True) -> Dataset:
    """A data set of the catalogue, a file of `save_mapped`, or what ``package.module:function`` returns.

    The function is called without arguments.

    Images are (n, channels, height, width), targets int64. Those of MNIST and the CIFARs stay uint8, a quarter of
    the memory, with the `scale` that normalises them inside the step. The validation split is drawn from the
    training images by a fixed permutation.

    Raises UserError where the name is unknown, the files are missing and can't be downloaded, or a file is broken.
    """
    if name.endswith(SUFFIX):
        return open_mapped(name)
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
        images, targets = scaled(images[order], _scale(known, 1)), targets[order]
        train, test = (
            (images[known.test :], targets[known.test :]),
            (images[: known.test], targets[: known.test]),
        )
    else:
        from lthfunc.data.vision import read_vision  # torchvision takes most of a second to import

        train, test = read_vision(name, Path(data_dir) if data_dir else default_data_dir(), download=download)
    return from_tensors(
        name,
        train,
        test,
        val=known.val,
        classes=known.classes,
        scale=None if name == "digits" else _scale(known, 255),
    )


def from_tensors(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    val: int,
    classes: int | None = None,
    scale: Scale | None = None,
) -> Dataset:
    """A Dataset from (inputs, integer targets) pairs; `val` training examples are held out by a fixed permutation.

    Inputs are floats ready for the network, or anything that `scale` makes such (uint8 pixels, say).

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
        scale=scale,
    )


def from_map_style(name: str, train: Sequence[Any], test: Sequence[Any], *, val: int) -> Dataset:
    """A Dataset from two map-style torch data sets of (input tensor, integer target) pairs, read into memory."""

    def stacked(examples: Sequence[Any]) -> tuple[Tensor, Tensor]:
        pairs = [examples[i] for i in range(len(examples))]
        return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])

    return from_tensors(name, stacked(train), stacked(test), val=val)


def _scale(known: Known, unit: float) -> Scale:
    return Scale(unit, known.mean, known.std)
