"""Data sets larger than memory: one safetensors file, mapped, read where and when a step needs it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from lthfunc.data.catalog import SUFFIX
from lthfunc.errors import UserError
from lthfunc.trees.files import read_header, save_tree
from lthfunc.trees.types import Dataset, Scale, Split

_FORMAT = "lthfunc.data/1"
_SPLITS = ("train", "val", "test")
#: safetensors' names of the types that inputs and targets come in.
_DTYPES = {"U8": torch.uint8, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


def save_mapped(path: str | os.PathLike[str], data: Dataset) -> None:
    """Write a data set as one file; its name must end in .safetensors.

    Entries train/x, train/y, val/x … hold the tensors as stored; the header names classes and scale.
    """
    if not str(path).endswith(SUFFIX):
        raise UserError(f"{path}: the name of a data set's file ends in {SUFFIX}")
    tree = {name: getattr(data, name)._asdict() for name in _SPLITS}
    scale = data.scale._asdict() if data.scale else None
    save_tree(path, tree, {"format": _FORMAT, "name": data.name, "classes": data.classes, "scale": scale})


def open_mapped(path: str | os.PathLike[str]) -> Dataset:
    """The data set in a file of `save_mapped`; its tensors stay on the disk until they are read.

    Training streams them: a thread gathers the next batches while the present ones are used.

    Raises UserError where the file can't be read or holds something else.
    """
    about = read_header(path)
    if about.get("format") != _FORMAT:
        raise UserError(f"--dataset: {str(path)!r} is not a data set's file (lthfunc.data.save_mapped writes them)")
    tensors = _mapped_tensors(Path(path))
    scale = about["scale"]
    return Dataset(
        name=f"{about['name']} ({Path(path).name})",
        **{name: Split(tensors[f"{name}/x"], tensors[f"{name}/y"]) for name in _SPLITS},
        classes=about["classes"],
        scale=Scale(scale["unit"], tuple(scale["mean"]), tuple(scale["std"])) if scale else None,
        mapped=True,
    )


def _mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Views into one mapping of the file, private to the process; `safetensors` itself would read them whole."""
    with safetensors.safe_open(str(path), framework="pt"):  # it checks that entries lie within the file
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    storage = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)

    def view(entry: dict[str, Any]) -> Tensor:
        dtype = _DTYPES[entry["dtype"]]
        start = 8 + size + entry["data_offsets"][0]
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)  # type: ignore[arg-type]
        return whole[start : start + math.prod(entry["shape"]) * dtype.itemsize].view(dtype).view(entry["shape"])

    return {name: view(entry) for name, entry in header.items() if name != "__metadata__"}
