"""From a name to a Dataset."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from lthfunc.arguments import public
from lthfunc.catalog.data_sets import DATA_DIR_VARIABLE, DATASETS, FILE_KINDS, SUFFIX, canonical, default_data_dir
from lthfunc.data.content_checks import checked_dataset
from lthfunc.data.data_warnings import with_warnings
from lthfunc.data.images import Observe
from lthfunc.data.loaders import from_loader
from lthfunc.data.mapped import SPLITS, open_mapped
from lthfunc.data.sources import has_examples
from lthfunc.data.torch_sets import from_dataset
from lthfunc.errors import UserError, failing_as_options, invalid, prefixed
from lthfunc.plugins import called, parameters_of
from lthfunc.printable import dtype_name
from lthfunc.remote import fetch_to_cache, is_remote
from lthfunc.trees.types import Dataset


@public
def load(
    name: str,
    data_dir: str | Path | None = None,
    download: bool = True,
    *,
    options: Mapping[str, str] | None = None,
    skip_broken: bool = False,
    tokenizer: str | Path | None = None,
    observe: Observe | None = None,
) -> Dataset:
    """A data set by its name: of the catalogue, of files, synthetic, or of a function of your own.

    name: of the catalogue (`lthfunc datasets`); ``folder:PATH``, ``npz:FILE``, ``hf:NAME``, ``text:FILE`` or a file of
    `save_mapped`; ``planted``; or ``module:function`` or ``path/to/file.py:name``. data_dir: where its files
    are, by default $LTHFUNC_DATA or the user's cache. download: whether to download what is missing. options: arguments
    of the reader or function, as text. skip_broken: whether to leave out images that cannot be read. tokenizer:
    of a text, a folder or file of the packages transformers or tokenizers. observe: called with how many of how many
    examples are decoded.

    Images are (n, channels, height, width), targets int64. Images of 256 levels stay uint8, a quarter of the memory,
    with the `scale` that normalises them inside the step: the published constants, or the training split's own. The
    validation split is drawn from the training examples by a fixed permutation. Raises UserError where the name is
    unknown, files are missing and cannot be downloaded, or one is broken.

    >>> data = lf.data.load("digits")
    >>> data.train.x.shape, data.classes
    (torch.Size([1257, 1, 8, 8]), 10)
    """
    name, options = canonical(name, "name"), options or {}
    if is_remote(name):
        name = str(fetch_to_cache("dataset", name))
    if name in DATASETS or name.endswith(SUFFIX):
        if options:
            raise invalid("dataset_option", next(iter(options)), f"nothing with {name}")
        _check_tokenizer(tokenizer, name)
        if name in DATASETS:
            offered: dict[str, Any] = {
                "name": name, "entry": DATASETS[name], "folder": _folder_of(name, data_dir), "download": download,
                "skip_broken": skip_broken, "observe": observe,
            }  # fmt: skip
            found: Dataset = DATASETS.make(name, offered)
            return found
        return with_warnings(_taken(open_mapped(name), name))
    if tokenizer is not None and is_remote(str(tokenizer)):
        tokenizer = fetch_to_cache("tokenizer", str(tokenizer))
    kind = FILE_KINDS.find(name)
    with failing_as_options({DATASETS.option: "dataset"}):
        function = (DATASETS if kind is None else FILE_KINDS).load(name)
    _check_tokenizer(tokenizer, name, function)
    given_tokenizer = {} if tokenizer is None else {"tokenizer": str(tokenizer)}
    if kind is None:
        offered = {"data_dir": str(data_dir or default_data_dir()), "observe": observe, **given_tokenizer}
        given = called("dataset", name, function, offered, options)
        with prefixed(f"dataset: {name!r}"):
            made = as_dataset(name.rpartition(":")[2], given, observe)
        return with_warnings(_taken(made, name)) if made is given else _taken(made, name)
    place = name.partition(":")[2]
    if is_remote(place) and "path" in kind[1]:
        place = str(fetch_to_cache("dataset", place))
    offered = {"path": place, "name": place, "skip_broken": skip_broken, "observe": observe, **given_tokenizer}
    return with_warnings(_taken(called("dataset", name, function, offered, options), name))


def _check_tokenizer(tokenizer: object, name: str, function: Callable[..., Any] | None = None) -> None:
    """Raise UserError for a tokenizer that the function of a data set does not take."""
    if tokenizer is None:
        return
    if function is None or "tokenizer" not in parameters_of("dataset", name, function):
        raise invalid("tokenizer", tokenizer, f"nothing with {name}")


def as_dataset(name: str, found: Any, observe: Observe | None = None) -> Any:
    """What a user's function gave, as a Dataset, if it is a data set of examples or several of them.

    Several come as (train, test), (train, val, test) or by these names. Anything else comes back as it is. Raises
    UserError where one cannot be read.
    """
    splits: dict[str, Any] = {"train": found}
    if isinstance(found, tuple) and not isinstance(found, Dataset) and 2 <= len(found) <= 3:
        splits = dict(zip(SPLITS if len(found) == 3 else ("train", "test"), found, strict=True))
    elif isinstance(found, Mapping) and "train" in found and found.keys() <= {*SPLITS, "validation"}:
        splits = {"val" if part == "validation" else part: value for part, value in found.items()}
    if any(isinstance(each, tuple) or not has_examples(each) for each in splits.values()):
        return found
    made = from_loader if isinstance(splits["train"], DataLoader) else from_dataset
    return made(name, **splits, observe=observe)


def _taken(data: Any, name: str) -> Dataset:
    """What a reader or a user's function gave, checked. Raises UserError."""
    found = checked_dataset(data, f"dataset: {name!r}")
    dtype = found.train.x.dtype  # and of the other splits
    if found.scale is None and dtype.is_floating_point and dtype is not torch.float32:
        raise UserError(f"dataset: {name!r}: its inputs are {dtype_name(dtype)}, and networks take float32 (x.float())")
    return found


def _folder_of(name: str, data_dir: str | Path | None) -> Path:
    """Where files are that lie here, or elsewhere: then those of this data set, brought here."""
    given, home = str(data_dir or os.environ.get(DATA_DIR_VARIABLE) or default_data_dir()), DATASETS[name].home
    if not home or not is_remote(given):
        return Path(given)
    return fetch_to_cache("data_dir", given, lambda found: found.startswith(f"{home}/"))
