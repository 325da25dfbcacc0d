"""Data sets of the Hugging Face Hub, or folders in its formats, through the package `datasets`."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lthfunc.data.images import ImageSource, Observe, decode_splits, image_format, image_options
from lthfunc.data.reader_options import check_shares
from lthfunc.data.tensors import make_dataset, scale_of, split_indices
from lthfunc.errors import UserError, unknown
from lthfunc.tracebacks import first_line
from lthfunc.trees.types import Dataset


def read_hub(
    name: str,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: int | str | None = None,
    channels: int | None = None,
    depth: int | None = None,
    background: int | str = "white",
    val: float = 0.1,
    test: float = 0.1,
    skip_broken: bool = False,
    observe: Observe | None = None,
) -> Dataset:
    """A data set of ``hf:NAME``: images with labels.

    NAME is on the Hub, or a folder that `datasets.load_dataset` reads. config: the data set's configuration; image,
    label: its columns, by default the first of their types. size, channels, depth, background: as for folders. Splits
    train, validation and test are used where they exist; others are drawn by a fixed permutation.

    Raises UserError where `datasets` isn't installed, or the data set cannot be read or holds no images with labels.
    """
    check_shares(val=val, test=test)
    asked = image_options(size, channels, depth, background)
    try:
        import datasets
    except ImportError as error:
        raise UserError("--dataset: hf: needs the package datasets (pip install 'lthfunc[hf]')") from error
    try:
        splits = dict(datasets.load_dataset(name, config).items())
    except Exception as error:  # a library's whole world: no network, no such name, other formats
        raise UserError(f"--dataset: 'hf:{name}' cannot be loaded ({first_line(error)})") from error
    if "train" not in splits:
        raise UserError(f"--dataset: 'hf:{name}' has no train split, only {', '.join(splits)}")
    features = splits["train"].features
    image = _column(name, "image", image, features, datasets.Image)
    label = _column(name, "label", label, features, datasets.ClassLabel)
    labels = tuple(getattr(features[label], "names", ()))
    wanted = image_format(_sources(name, splits["train"], image), asked, f"'hf:{name}'", skip_broken=skip_broken)
    held = next((splits[each] for each in ("validation", "valid", "val") if each in splits), None)
    found = {part: splits[part] for part in ("train", "test") if part in splits}
    if held is not None:
        found["val" if "test" in found else "test"] = held
    shape = (1 if wanted.gray else 3, *wanted.size)
    x = {part: torch.empty(len(split), *shape, dtype=torch.uint8) for part, split in found.items()}
    sources = {part: _sources(name, split, image) for part, split in found.items()}
    broken = decode_splits(sources, wanted, x, f"'hf:{name}'", skip_broken=skip_broken, observe=observe)
    pairs = {}
    for part, split in found.items():
        left = torch.ones(len(split), dtype=torch.bool)
        left[broken[part]] = False
        pairs[part] = x[part][left], _targets(name, label, split[label])[left]
    train = pairs["train"]
    if "test" not in pairs:
        chosen, rest = split_indices(len(train[0]), (test,), name)
        pairs["test"], train = (train[0][chosen], train[1][chosen]), (train[0][rest], train[1][rest])
    short = name.rstrip("/").rpartition("/")[2]
    size = max(1, round(val * len(train[0])))
    data = make_dataset(short, train, pairs["test"], val=size, held=pairs.get("val"), labels=labels)
    return data._replace(scale=scale_of(data.train.x))


def _sources(name: str, split: Any, column: str) -> list[ImageSource]:
    """What opens each example's image."""

    def opened(index: int) -> Any:
        image = split[index][column]
        if not hasattr(image, "convert"):
            raise UserError(f"is a {type(image).__name__}, not an image")
        return image

    return [(f"example {i} of {name}", partial(opened, i)) for i in range(len(split))]


def _targets(name: str, column: str, values: Any) -> Tensor:
    """A column of class numbers, or of numbers."""
    try:
        return torch.tensor(list(values))
    except (TypeError, ValueError, RuntimeError) as error:  # None, texts, lists of several lengths
        odd = next((value for value in values if not isinstance(value, (int, float))), values[0])
        raise UserError(
            f"--dataset: 'hf:{name}' has {odd!r} in its column {column!r} (expected class numbers from 0; "
            "class_encode_column of the package datasets makes them)"
        ) from error


def _column(name: str, option: str, given: str | None, features: Any, kind: Any) -> str:
    """The column by its name, or the first of a type."""
    if given is not None:
        if given not in features:
            raise unknown(f"--dataset-option {option}", given, list(features))
        return given
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    if not found:
        columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        raise UserError(
            f"--dataset: 'hf:{name}' has no column of kind {kind.__name__}: {columns}; name one with --dataset-option "
            f"{option}=COLUMN"
        )
    return str(found[0])
