"""NumPy archives (.npz)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lthfunc.data.as_tensors import targets_of, tensor_of
from lthfunc.data.content_checks import NamedSplit, check_pairs, is_one_hot
from lthfunc.data.pixels import channels_last
from lthfunc.data.reader_options import check_shares, check_whole, regular
from lthfunc.data.tensors import make_dataset, scale_of, split_indices
from lthfunc.errors import UserError
from lthfunc.hardware import memory_bytes
from lthfunc.tracebacks import first_line
from lthfunc.trees.types import Dataset

_ACCEPTED = "arrays x_train, y_train, x_test, y_test (x_val, y_val), or x and y"
_TRAIN, _TEST, _VAL = ((f"x_{part}", f"y_{part}") for part in ("train", "test", "val"))


def read_npz(path: str, *, val: float = 0.1, test: float = 0.1, classes: int | None = None) -> Dataset:
    """A data set of ``npz:FILE``: arrays x_train, y_train, x_test, y_test (and x_val, y_val), or x and y.

    Missing splits are drawn by a fixed permutation; val, test: their shares of the examples. uint8 images, (n, height,
    width) or with channels first or last, are normalised by the training split's mean and deviation; floats are used as
    they are. Targets are whole numbers, one for each example or, of images, each pixel (255 for none), or floats for
    regression. classes: their number, where the targets don't show it.

    Raises UserError for a file that holds something else. Nothing in it is unpickled.
    """
    check_shares(val=val, test=test)
    if classes is not None:
        check_whole(classes=classes)
    arrays = _read(path)
    try:
        data = _assembled(Path(path).stem, arrays, val, test, classes)
    except UserError as error:
        raise UserError(f"dataset: {path}: {error}") from error
    return data._replace(scale=scale_of(data.train.x)) if data.train.x.dtype == torch.uint8 else data


def _read(path: str) -> dict[str, Any]:
    try:
        archive = np.load(regular(path), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("it is one array, a .npy file; np.savez writes several by name")
        with archive:
            _check_sizes(archive)
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # the system's, NumPy's or zipfile's own
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        if "allow_pickle" in reason:  # NumPy's words for objects advise to unpickle them
            reason = "it holds Python objects, or is no archive of np.savez; only arrays of numbers are read"
        raise UserError(f"dataset: {path} cannot be read as a .npz file ({reason})") from error


def _check_sizes(archive: np.lib.npyio.NpzFile) -> None:
    """Raise ValueError, before anything is unpacked, for invalid arrays and for those that memory cannot hold.

    The archive's directory and each array's header contain sizes; a few bytes may unpack to terabytes.
    """
    members, most = archive.zip.infolist(), memory_bytes()  # type: ignore[union-attr]
    total = sum(member.file_size for member in members)
    if most is not None and total > most:
        raise ValueError(f"its arrays take {total / 1e9:,.1f} GB, and this machine's memory has {most / 1e9:,.1f} GB")
    for member in members:
        if not member.filename.endswith(".npy"):
            continue
        with archive.zip.open(member) as file:  # type: ignore[union-attr]
            version = np.lib.format.read_magic(file)
            # Two formats of headers; the third is the second in UTF-8.
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            told, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if told > there and not dtype.hasobject:
            raise ValueError(f"{member.filename} declares {told:,} bytes but holds {there:,}")


def _assembled(name: str, arrays: Mapping[str, Any], val: float, test: float, classes: int | None) -> Dataset:
    """The data set of these arrays. Raises UserError, which names the array at fault."""
    whole = {"x", "y"} <= arrays.keys()
    if not whole and not {*_TRAIN, *_TEST} <= arrays.keys():
        raise UserError(f"holds {', '.join(arrays) or 'nothing'}; expected {_ACCEPTED}")
    parts = {"train": ("x", "y")} if whole else {"train": _TRAIN, "test": _TEST}
    if not whole and not arrays.keys().isdisjoint(_VAL):
        parts["val"] = _VAL
    names = [each for pair in parts.values() for each in pair]
    for each in ("x", "y", *_TRAIN, *_TEST, *_VAL):
        if (each in arrays) != (each in names):
            with_what = f"holds {each} beside x and y" if each in arrays else f"has no {each}, but {', '.join(arrays)}"
            raise UserError(f"{with_what}; expected {_ACCEPTED}")
    pairs = []
    for x_name, y_name in parts.values():
        x = _inputs(arrays[x_name], x_name)
        pairs.append(NamedSplit(x, _targets(arrays[y_name], y_name, x), x_name, y_name))
    outputs = check_pairs(pairs, classes)
    found = {part: (pair.x, pair.y) for part, pair in zip(parts, pairs, strict=True)}
    if whole:
        x, y = found["train"]
        test_part, rest = split_indices(len(x), (test,), name)
        found = {"train": (x[rest], y[rest]), "test": (x[test_part], y[test_part])}
        parts["test"] = parts["train"]
        classes = classes or (None if y.is_floating_point() else outputs)
    size = max(1, round(val * len(found["train"][0])))
    return make_dataset(
        name, found["train"], found["test"], val=size, held=found.get("val"), classes=classes, called=parts
    )


def _inputs(array: Any, name: str) -> Tensor:
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        if array.ndim == 3:
            array = array[:, None]
        elif channels_last(array.shape[1], array.shape[3]):
            array = array.transpose(0, 3, 1, 2)
    elif array.dtype == np.uint8:
        raise UserError(f"{name} is uint8 of shape {array.shape}; images have 3 or 4 dimensions")
    elif array.ndim < 2 or array.dtype.kind != "f":
        more = ""
        if array.dtype.kind in "biu" and array.ndim > 1:
            more = "; array.astype(np.float32) makes floats, and a division by their white level the levels of images"
        raise UserError(f"{name} is {array.dtype} of shape {array.shape}; inputs are uint8 images or floats{more}")
    x = tensor_of(array, name)
    return x.float() if x.is_floating_point() else x


def _targets(array: Any, name: str, x: Tensor) -> Tensor:
    of_pixels = array.ndim == 3 and array.dtype.kind in "biu" and x.ndim == 4
    if array.dtype.kind not in "biuf" or not (array.ndim in (1, 2) or of_pixels):
        texts = "; np.unique(y, return_inverse=True)[1] numbers texts" if array.dtype.kind in "US" else ""
        raise UserError(
            f"{name} is {array.dtype} of shape {array.shape}; targets are whole numbers or floats, one or a "
            f"row for each example, or whole numbers for each pixel of images{texts}"
        )
    y = targets_of(array, name, x)
    if not y.is_floating_point() and y.ndim == 2 and len(y):
        one_hot = "one-hot; y.argmax(1) gives the classes"
        hint = one_hot if is_one_hot(y) else "classes are one whole number for each example"
        raise UserError(f"{name} is {array.dtype} of shape {array.shape}: {hint}")
    return y
