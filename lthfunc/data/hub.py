"""Data sets of the Hugging Face Hub, or folders in its formats, through the package `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.data.hub_text import read_texts, short_name
from lthfunc.data.images import ImageOptions, ImageSource, Observe, decode_splits, image_format, image_options
from lthfunc.data.reader_options import check_shares, check_whole
from lthfunc.data.tensors import make_dataset, scale_of, split_indices
from lthfunc.data.tokens import Windows
from lthfunc.downloads import downloading
from lthfunc.errors import UserError, invalid, unknown
from lthfunc.tracebacks import first_line
from lthfunc.trees.types import Dataset

#: The dtypes of columns of texts, and files of a folder that `save_to_disk` wrote.
_TEXTS, _SAVED = ("string", "large_string"), ("dataset_dict.json", "state.json")


def read_hub(
    name: str,
    *,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
    size: int | str | None = None,
    channels: int | None = None,
    depth: int | None = None,
    background: int | str | None = None,
    text: str | None = None,
    length: int | None = None,
    val: float = 0.1,
    test: float = 0.1,
    tokenizer: str | None = None,
    skip_broken: bool = False,
    observe: Observe | None = None,
) -> Dataset:
    """A data set of ``hf:NAME``: images with labels, or texts.

    NAME is on the Hub, a folder that `datasets.load_dataset` reads, or one that `save_to_disk` wrote. config: the data
    set's configuration; image, label, text: its columns, by default the first of their types, texts only where there
    are no images. size, channels, depth, background: as for folders of images. length: of a text's windows, by default
    64 tokens; tokenizer: as of `tokenizer_at`, by default the bytes of the texts. Splits train, validation and test are
    used where they exist; others are drawn by a fixed permutation, or are the ends of the texts.

    Raises UserError where `datasets` isn't installed, or the data set cannot be read or holds neither.
    """
    check_shares(val=val, test=test)
    asked = image_options(size, channels, depth, "white" if background is None else background)
    windows = Windows(64 if length is None else length, val, test)
    check_whole(length=windows.length)
    splits = _splits(name, config)
    features = splits["train"].features
    texts = [column for column, feature in features.items() if getattr(feature, "dtype", "") in _TEXTS]
    if text is not None or (texts and image is None and not _of_type(features, "Image")):
        if text is not None and text not in features:
            raise unknown("dataset_option: text", text, texts or list(features))
        of_images = {"image": image, "label": label, "size": size, "channels": channels, "depth": depth,
                     "background": background}  # fmt: skip
        _check_unused(f"the texts of 'hf:{name}'", of_images)
        return read_texts(name, splits, text or texts[0], tokenizer, windows, observe)
    if tokenizer is not None:
        raise invalid("tokenizer", tokenizer, f"nothing with the images of 'hf:{name}'")
    _check_unused(f"the images of 'hf:{name}'", {"length": length})
    columns = _column(name, "image", image, features, "Image"), _column(name, "label", label, features, "ClassLabel")
    x = _images(name, splits, columns[0], asked, skip_broken=skip_broken, observe=observe)
    pairs = {part: (x[part][0], _targets(name, columns[1], splits[part][columns[1]])[x[part][1]]) for part in splits}
    train = pairs["train"]
    if "test" not in pairs:
        chosen, rest = split_indices(len(train[0]), (test,), name)
        pairs["test"], train = (train[0][chosen], train[1][chosen]), (train[0][rest], train[1][rest])
    labels = tuple(getattr(features[columns[1]], "names", ()))
    held = max(1, round(val * len(train[0])))
    data = make_dataset(short_name(name), train, pairs["test"], val=held, held=pairs.get("val"), labels=labels)
    return data._replace(scale=scale_of(data.train.x))


def _splits(name: str, config: str | None) -> dict[str, Any]:
    """The splits train, val and test, those of them that there are. Raises UserError."""
    try:
        import datasets
    except ImportError as error:
        raise UserError("dataset: hf: needs the package datasets (pip install 'lthfunc[hf]')") from error
    place = Path(name).expanduser()
    saved = any((place / each).is_file() for each in _SAVED)
    if saved and config is not None:
        raise invalid("dataset_option", f"config={config}", f"nothing with the saved data set 'hf:{name}'")
    try:
        if saved:
            found = datasets.load_from_disk(str(place))
            found = found if isinstance(found, Mapping) else {"train": found}
        else:
            with nullcontext() if place.exists() else downloading(f"{name} from the Hugging Face Hub"):
                found = datasets.load_dataset(str(place) if place.exists() else name, config)
        splits = dict(found.items())
    except Exception as error:  # a library's whole world: no network, no such name, other formats
        raise UserError(f"dataset: 'hf:{name}' cannot be loaded ({first_line(error)})") from error
    if "train" not in splits:
        raise UserError(f"dataset: 'hf:{name}' has no train split, only {', '.join(splits)}")
    held = next((splits[each] for each in ("validation", "valid", "val") if each in splits), None)
    chosen = {part: splits[part] for part in ("train", "test") if part in splits}
    return chosen | ({} if held is None else {"val" if "test" in chosen else "test": held})


def _check_unused(what: str, options: Mapping[str, Any]) -> None:
    """Raise UserError for an option that was given and means nothing."""
    for key, value in options.items():
        if value is not None:
            raise invalid("dataset_option", f"{key}={value}", f"nothing with {what}")


def _images(
    name: str, splits: Mapping[str, Any], column: str, asked: ImageOptions, *, skip_broken: bool,
    observe: Observe | None,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """(the images, which rows they are) of each split."""
    sources = {part: _sources(name, split, column) for part, split in splits.items()}
    wanted = image_format(sources["train"], asked, f"'hf:{name}'", skip_broken=skip_broken)
    shape = (1 if wanted.gray else 3, *wanted.size)
    x = {part: torch.empty(len(split), *shape, dtype=torch.uint8) for part, split in splits.items()}
    broken = decode_splits(sources, wanted, x, f"'hf:{name}'", skip_broken=skip_broken, observe=observe)
    found = {}
    for part, images in x.items():
        left = torch.ones(len(images), dtype=torch.bool)
        left[broken[part]] = False
        found[part] = images[left], left
    return found


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
            f"dataset: 'hf:{name}' has {odd!r} in its column {column!r} (expected class numbers from 0; "
            "class_encode_column of the package datasets makes them)"
        ) from error


def _column(name: str, option: str, given: str | None, features: Any, kind: str) -> str:
    """The column by its name, or the first of a type."""
    if given is not None:
        if given not in features:
            raise unknown(f"dataset_option: {option}", given, list(features))
        return given
    found = _of_type(features, kind)
    if not found:
        columns = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
        raise UserError(
            f"dataset: 'hf:{name}' has no column of kind {kind}: {columns}; name one with the dataset option "
            f"{option}=COLUMN"
        )
    return str(found[0])


def _of_type(features: Any, kind: str) -> list[str]:
    """The columns of a type of the package."""
    import datasets

    return [column for column, feature in features.items() if isinstance(feature, getattr(datasets, kind))]
