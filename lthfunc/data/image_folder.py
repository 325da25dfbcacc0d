"""Folders of images, one sub-folder per class: decoded once into a file that is mapped from then on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.catalog.data_sets import DataSetEntry
from lthfunc.data.images import ImageOptions, Observe, decode_splits, image_format, image_options
from lthfunc.data.mapped import opened, writing
from lthfunc.data.reader_options import check_shares, check_whole
from lthfunc.data.tensors import scale_of, split_indices
from lthfunc.errors import UserError, invalid
from lthfunc.hardware import cache_home
from lthfunc.trees.types import Dataset, Scale

_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif"}
_VALIDATION = ("val", "valid", "validation")
#: Tiny-ImageNet's list of its validation images.
_LIST = "val_annotations.txt"
#: Changes whenever images decode to other tensors than before, so that the cache is not used.
_DECODING = 2


class _Found(NamedTuple):
    """The files and their classes of each split, and the names of the classes."""

    splits: dict[str, list[tuple[Path, int]]]
    labels: tuple[str, ...]


def read_folder(
    path: str,
    *,
    size: int | str | None = None,
    channels: int | None = None,
    depth: int | None = None,
    background: int | str = "white",
    each: int | None = None,
    val: float = 0.1,
    test: float = 0.1,
    skip_broken: bool = False,
    observe: Observe | None = None,
) -> Dataset:
    """A data set of ``folder:PATH``.

    PATH holds a folder for each class, or folders ``train``, ``val`` (or ``valid``, ``validation``) and ``test`` that
    do; or Tiny-ImageNet's layout. Missing splits are drawn by a fixed permutation: `val` and `test` of all images, or
    `val` of ``train``; ``val`` without ``test`` is the test split. size: to which images are scaled and cropped; by
    default all must have the first one's. channels: 1 makes all images grey, 3 all RGB; by default they are grey if the
    first one is, and then none may be in colour. depth: bits of grey pixels deeper than eight, where the file doesn't
    say. background: what shows behind transparent pixels: white, black or a grey level. each: the most images of a
    class in ``train`` and ``test`` alike, the first by name.

    The decoded images are stored in the cache (``$LTHFUNC_CACHE/data``), under a name that changes with any file; the
    normalisation is that of the training split. Raises UserError, with the path, for what cannot be read.
    """
    root, asked = Path(path).expanduser(), image_options(size, channels, depth, background)
    check_shares(val=val, test=test)
    if not root.is_dir():
        raise invalid("dataset", f"folder:{path}", "an existing folder of images")
    if each is not None:
        check_whole(each=each)
    found = _splits(root, val, test, each)
    target = _cached(root, found, (_DECODING, asked, skip_broken))
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _decode(root, found, asked, target, skip_broken, observe)
    return opened(target, root.name)


def load_tiny_imagenet(
    name: str, entry: DataSetEntry, folder: Path, skip_broken: bool, observe: Observe | None
) -> Dataset:
    """The images, normalised by the published constants. Raises UserError where the archive isn't unpacked."""
    place = folder / entry.home
    if not place.is_dir():
        raise UserError(
            f"dataset: {name!r} is not in {folder}: unpack tiny-imagenet-200.zip there (Stanford's CS231n has it)"
        )
    data = read_folder(str(place), channels=3, skip_broken=skip_broken, observe=observe)  # a few of them are grey
    return data._replace(scale=Scale(255, entry.mean, entry.std))


def _splits(root: Path, val: float, test: float, each: int | None) -> _Found:
    """Files by split. Raises UserError for another layout."""
    named = (root / "train").is_dir()
    train_root = root / "train" if named else root
    labels = _labels(train_root)
    splits = {"train": _files(train_root, labels, each)}
    held = next((root / name for name in _VALIDATION if named and (root / name).is_dir()), None)
    if held is not None:
        splits["val"] = _annotated(held, labels) if (held / _LIST).exists() else _files(held, labels, each)
    tested = root / "test"
    if named and tested.is_dir() and any(part.is_dir() and part.name in labels for part in tested.iterdir()):
        splits["test"] = _files(tested, labels, each)
    elif held is not None:
        splits["test"] = splits.pop("val")
    missing = [(name, share) for name, share in (("test", test), ("val", val)) if name not in splits]
    if missing:
        files = splits["train"]
        *parts, rest = split_indices(len(files), [share for _, share in missing], root.name)
        for (name, _), part in zip(missing, parts, strict=True):
            splits[name] = [files[i] for i in part]
        splits["train"] = [files[i] for i in rest]
    return _Found(splits, labels)


def _labels(root: Path) -> tuple[str, ...]:
    labels = tuple(sorted(each.name for each in root.iterdir() if each.is_dir() and not each.name.startswith(".")))
    if len(labels) < 2:
        raise UserError(f"dataset: {root} holds {len(labels)} folders; expected one for each of at least two classes")
    return labels


def _files(root: Path, labels: Sequence[str], each: int | None) -> list[tuple[Path, int]]:
    """The images of each class, sorted by name. Raises UserError for a class without images."""
    found: list[tuple[Path, int]] = []
    others = [path.name for path in root.iterdir() if path.is_dir() and path.name not in labels]
    if others:
        raise UserError(f"dataset: {root / sorted(others)[0]} is not a class of the training images")
    for label, name in enumerate(labels):
        mine = sorted(path for path in (root / name).rglob("*") if _is_image(path, root / name))
        if not mine:
            raise UserError(f"dataset: class {name!r} has no image in {root / name}")
        found += [(path, label) for path in mine[:each]]
    return found


def _is_image(path: Path, folder: Path) -> bool:
    """Whether its name is an image's; hidden files (macOS's ._NAME, a notebook's checkpoints) are not."""
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in _SUFFIXES and not hidden and path.is_file()


def _annotated(folder: Path, labels: Sequence[str]) -> list[tuple[Path, int]]:
    """Tiny-ImageNet's validation images: name, class and bounding box in each line of a list."""
    found = []
    for number, line in enumerate((folder / _LIST).read_text().splitlines(), 1):
        name, _, label = line.partition("\t")
        label = label.split("\t")[0]
        if label not in labels:
            raise UserError(f"dataset: line {number} of {folder / _LIST} names a class without training images")
        image = folder / "images" / name
        if image.exists() and not image.is_file():
            raise UserError(f"dataset: {image} is not a regular file")
        found.append((image, labels.index(label)))
    return found


def _cached(root: Path, found: _Found, options: tuple[Any, ...]) -> Path:
    digest = hashlib.sha256(repr((options, found.labels)).encode())
    for name, files in sorted(found.splits.items()):
        for path, label in files:
            about = path.stat() if path.exists() else None
            stamp = (about.st_size, about.st_mtime_ns) if about else None
            digest.update(repr((name, str(path.relative_to(root)), label, stamp)).encode())
    return cache_home() / "data" / f"{root.name}-{digest.hexdigest()[:16]}.safetensors"


def _decode(
    root: Path, found: _Found, asked: ImageOptions, target: Path, skip_broken: bool, observe: Observe | None
) -> None:
    """Write the decoded file, whole or not at all."""
    from PIL import Image

    sources = {
        name: [(str(path), partial(Image.open, path)) for path, _ in files] for name, files in found.splits.items()
    }
    wanted = image_format(sources["train"], asked, str(root), skip_broken=skip_broken)
    shape = (1 if wanted.gray else 3, *wanted.size)
    entries = {
        f"{name}/{part}": (dtype, (len(files), *(shape if part == "x" else ())))
        for name, files in found.splits.items()
        for part, dtype in (("x", torch.uint8), ("y", torch.int64))
    }
    with writing(target, entries) as file:
        counts: dict[str, int] = {}
        into = {name: file.views[f"{name}/x"] for name in found.splits}
        broken = decode_splits(sources, wanted, into, str(root), skip_broken=skip_broken, observe=observe)
        for name, files in found.splits.items():
            x, y = file.views[f"{name}/x"], file.views[f"{name}/y"]
            y.copy_(torch.tensor([label for _, label in files]))
            counts[name] = _closed_up(x, y, broken[name])
            if not counts[name]:
                raise UserError(f"dataset: no image of {root}'s {name} split can be read")
        scale = scale_of(file.views["train/x"][: counts["train"]])
        file.finish(root.name, len(found.labels), scale, found.labels, counts)


def _closed_up(x: Tensor, y: Tensor, broken: list[int]) -> int:
    """Move examples forward over the broken ones; returns the number of examples left."""
    if broken:
        gone = set(broken)
        left = [i for i in range(len(y)) if i not in gone]
        for new, old in enumerate(left):
            if new != old:
                x[new], y[new] = x[old], y[old]
    return len(y) - len(broken)
