"""From a name to a Dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from lthfunc.arguments import public
from lthfunc.catalog.data_sets import (
    DATA_DIR_VARIABLE,
    DATASETS,
    SUFFIX,
    TINY_IMAGENET,
    Known,
    canonical,
    default_data_dir,
    kind_of,
)
from lthfunc.data.content_checks import checked_dataset
from lthfunc.data.data_warnings import with_warnings
from lthfunc.data.digits import read_digits
from lthfunc.data.hub import read_hub
from lthfunc.data.image_folder import read_folder
from lthfunc.data.images import Observe
from lthfunc.data.mapped import open_mapped
from lthfunc.data.npz import read_npz
from lthfunc.data.planted import read_planted
from lthfunc.data.tensors import from_tensors, split_indices
from lthfunc.data.text import read_text
from lthfunc.errors import UserError, invalid
from lthfunc.plugins import called, load_plugin
from lthfunc.remote import fetch_to_cache, is_remote
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset, Scale

_READERS: dict[str, Callable[..., Dataset]] = {
    "folder": read_folder,
    "npz": read_npz,
    "hf": read_hub,
    "text": read_text,
    "planted": read_planted,
}


@public
def load(
    name: str,
    data_dir: str | Path | None = None,
    download: bool = True,
    *,
    options: Mapping[str, str] | None = None,
    skip_broken: bool = False,
    observe: Observe | None = None,
) -> Dataset:
    """A data set of the catalogue, of files (``folder:PATH``, ``npz:FILE``, ``hf:NAME``, ``text:FILE``, a file of
    `save_mapped`), synthetic (``planted``), or what ``package.module:function`` or ``path/to/file.py:name`` returns.

    Images are (n, channels, height, width), targets int64. Those of 256 levels stay uint8, a quarter of the memory,
    with the `scale` that normalises them inside the step: the published constants, or the training split's own. The
    validation split is drawn from the training examples by a fixed permutation. options: arguments of the reader or the
    function, as text. skip_broken: leave images out that cannot be read. observe: told how many of how many images are
    decoded.

    Raises UserError where the name is unknown, the files are missing and can't be downloaded, or a file is broken.
    """
    name, options = canonical(name), options or {}
    if is_remote(name):
        name = str(fetch_to_cache("--dataset", name))
    if name in DATASETS or name.endswith(SUFFIX):
        if options:
            raise invalid("--dataset-option", next(iter(options)), f"nothing with {name}")
        if name in DATASETS:
            return _known(name, data_dir, download, skip_broken, observe)
        return with_warnings(_taken(open_mapped(name), name))
    kind = kind_of(name)
    if kind is None:
        function = load_plugin("--dataset", name)
        data = called("--dataset", name, function, {"data_dir": str(data_dir or default_data_dir())}, options)
        return with_warnings(_taken(data, name))
    place = name.partition(":")[2]
    if is_remote(place) and kind != "hf":
        place = str(fetch_to_cache("--dataset", place))
    offered: dict[str, Any] = {"path": place, "name": place, "skip_broken": skip_broken, "observe": observe}
    found: Dataset = called("--dataset", name, _READERS[kind], offered, options)
    return with_warnings(_taken(found, name))


def _taken(data: Any, name: str) -> Dataset:
    """What a reader or a user's function gave, checked. Raises UserError."""
    found = checked_dataset(data, f"--dataset: {name!r}")
    for part in ("train", "val", "test"):
        dtype = getattr(found, part).x.dtype
        if found.scale is None and dtype.is_floating_point and dtype is not torch.float32:
            kind = str(dtype).removeprefix("torch.")
            raise UserError(f"--dataset: {name!r}: its inputs are {kind}, and networks take float32 (x.float())")
    return found


def _known(
    name: str, data_dir: str | Path | None, download: bool, skip_broken: bool, observe: Observe | None
) -> Dataset:
    known, folder = DATASETS[name], _folder_of(name, data_dir)
    if name == "digits":
        images, targets = read_digits()
        held, rest = split_indices(len(images), (known.test / len(images),), name)
        images = scaled(images, _scale(known, 1))
        train, test = (images[rest], targets[rest]), (images[held], targets[held])
        return from_tensors(name, train, test, val=known.val, classes=known.classes)
    if name == "tinyimagenet":
        if not (folder / TINY_IMAGENET).is_dir():
            raise UserError(
                f"--dataset: {name!r} is not in {folder}: unpack tiny-imagenet-200.zip there (Stanford's CS231n has it)"
            )
        place = str(folder / TINY_IMAGENET)
        data = read_folder(place, channels=3, skip_broken=skip_broken, observe=observe)  # a few of them are grey
        return data._replace(scale=_scale(known, 255))
    from lthfunc.data.vision import read_vision  # torchvision takes most of a second to import

    train, test = read_vision(name, folder, download=download)
    return from_tensors(name, train, test, val=known.val, classes=known.classes, scale=_scale(known, 255))


def _folder_of(name: str, data_dir: str | Path | None) -> Path:
    """Where files are that lie here, or elsewhere: then those of this data set, brought here."""
    given = str(data_dir or os.environ.get(DATA_DIR_VARIABLE) or default_data_dir())
    if name == "digits" or not is_remote(given):
        return Path(given)
    home = TINY_IMAGENET
    if name != "tinyimagenet":
        from lthfunc.data.vision import home_of  # torchvision takes most of a second to import

        home = home_of(name, Path()).as_posix()
    return fetch_to_cache("--data-dir", given, lambda found: found.startswith(f"{home}/"))


def _scale(known: Known, unit: float) -> Scale:
    return Scale(unit, known.mean, known.std)
