"""Tiny-ImageNet, from the folder that its archive makes."""

from __future__ import annotations

from pathlib import Path

from lthfunc.catalog.data_sets import DataSetEntry
from lthfunc.data.image_folder import read_folder
from lthfunc.data.images import Observe
from lthfunc.errors import UserError
from lthfunc.trees.types import Dataset, Scale


def load_tiny_imagenet(
    name: str, entry: DataSetEntry, folder: Path, skip_broken: bool, observe: Observe | None
) -> Dataset:
    """The images, normalised by the published constants. Raises UserError where the archive isn't unpacked."""
    place = folder / entry.home
    if not place.is_dir():
        raise UserError(
            f"--dataset: {name!r} is not in {folder}: unpack tiny-imagenet-200.zip there (Stanford's CS231n has it)"
        )
    data = read_folder(str(place), channels=3, skip_broken=skip_broken, observe=observe)  # a few of them are grey
    return data._replace(scale=Scale(255, entry.mean, entry.std))
