"""NumPy archives (.npz)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lthfunc.data.options import check_shares
from lthfunc.data.tensors import from_tensors, parted, scale_of, targets_of
from lthfunc.errors import UserError
from lthfunc.frames import first_line
from lthfunc.trees.types import Dataset, Split

_ACCEPTED = "arrays x_train, y_train, x_test, y_test (x_val, y_val), or x and y"


def read_npz(path: str, *, val: float = 0.1, test: float = 0.1) -> Dataset:
    """A data set of ``npz:FILE``: arrays x_train, y_train, x_test, y_test, and x_val, y_val where they are; or x and y.

    Splits that aren't there are drawn by a fixed permutation, as shares of the examples. uint8 images, (n, height,
    width) or with channels first or last, are normalised by the training split's mean and deviation; floats are taken
    as they are. Targets are whole numbers, or floats to come close to.

    Raises UserError for a file that holds something else. Nothing in it is unpickled.
    """
    check_shares(val=val, test=test)
    file = Path(path).expanduser()
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # the system's, NumPy's or zipfile's own
        raise UserError(f"--dataset: {path} cannot be read as a .npz file ({first_line(error)})") from error
    name = file.stem
    if {"x", "y"} <= arrays.keys():
        x, y = _inputs(arrays["x"], "x"), _targets(arrays["y"], "y")
        _same_length(x, y, "x", "y")
        test_part, rest = parted(len(x), (test,), name)
        train, tested = (x[rest], y[rest]), (x[test_part], y[test_part])
    elif {"x_train", "y_train", "x_test", "y_test"} <= arrays.keys():
        train, tested = (
            (_inputs(arrays[f"x_{part}"], f"x_{part}"), _targets(arrays[f"y_{part}"], f"y_{part}"))
            for part in ("train", "test")
        )
        _same_length(*train, "x_train", "y_train")
        _same_length(*tested, "x_test", "y_test")
    else:
        raise UserError(f"--dataset: {path} holds {', '.join(arrays) or 'nothing'}; it takes {_ACCEPTED}")
    held = None
    if {"x_val", "y_val"} <= arrays.keys():
        held = Split(_inputs(arrays["x_val"], "x_val"), _targets(arrays["y_val"], "y_val"))
    data = from_tensors(name, train, tested, val=max(1, round(val * len(train[0]))))
    if held is not None:
        data = data._replace(train=Split(*train), val=held)
    return data._replace(scale=scale_of(data.train.x)) if data.train.x.dtype == torch.uint8 else data


def _inputs(array: Any, name: str) -> Tensor:
    if array.dtype == np.uint8:
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)
        if array.ndim != 4:
            raise UserError(f"--dataset: {name} is uint8 of shape {array.shape}; images have 3 or 4 dimensions")
        return torch.from_numpy(np.ascontiguousarray(array))
    if array.ndim < 2 or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"--dataset: {name} is {array.dtype} of shape {array.shape}; inputs are uint8 images or floats")
    if not np.isfinite(array).all():
        raise UserError(f"--dataset: {name} holds numbers that are not finite")
    return torch.from_numpy(array.astype(np.float32))


def _targets(array: Any, name: str) -> Tensor:
    if array.ndim == 2 and array.shape[1] == 1 and np.issubdtype(array.dtype, np.integer):
        array = array[:, 0]
    if np.issubdtype(array.dtype, np.integer) and array.ndim == 1:
        return targets_of(torch.from_numpy(array.astype(np.int64)))
    if np.issubdtype(array.dtype, np.floating) and array.ndim in (1, 2):
        return targets_of(torch.from_numpy(array.astype(np.float32)))
    raise UserError(f"--dataset: {name} is {array.dtype} of shape {array.shape}; targets are whole numbers or floats")


def _same_length(x: Tensor, y: Tensor, first: str, second: str) -> None:
    if len(x) != len(y):
        raise UserError(f"--dataset: {first} has {len(x)} examples and {second} {len(y)}")
