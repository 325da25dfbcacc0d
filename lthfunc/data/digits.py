"""The bundled digits: the test part of UCI's "Optical Recognition of Handwritten Digits"; see digits.LICENSE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lthfunc.catalog.data_sets import DataSetEntry
from lthfunc.data.tensors import from_tensors, split_indices
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset, Scale


def load_digits(name: str, entry: DataSetEntry) -> Dataset:
    """The digits, a fixed part of them held out as the test split."""
    images, targets = read_digits()
    held, rest = split_indices(len(images), (entry.examples[2] / len(images),), name)
    images = scaled(images, Scale(1, entry.mean, entry.std))
    train, test = (images[rest], targets[rest]), (images[held], targets[held])
    return from_tensors(name, train, test, val=entry.examples[1], classes=entry.classes)


def read_digits() -> tuple[Tensor, Tensor]:
    """1,797 images (n, 1, 8, 8), float32 in [0, 1] (sixteenths), and targets int64."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as file:
        images, targets = torch.from_numpy(file["images"]), torch.from_numpy(file["targets"])
    return images.float().div_(16).unsqueeze(1), targets.long()
