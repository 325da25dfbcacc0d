"""Checkpoints of other programs as plain tensors. The one place that reads pickled files, and by tensors alone.

``torch.load(weights_only=True)`` makes tensors and plain containers and nothing else; a file is refused before that if
it, or what is packed in it, is larger than it may be, or if the checksum that its name tells is another.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lthfunc.errors import DamagedError, UserError
from lthfunc.frames import first_line
from lthfunc.trees.files import load_tree

#: Keys under which programs keep the weights within a checkpoint.
_WITHIN = ("state_dict", "model_state_dict", "model", "params", "net", "weights")
#: Put before names by wrappers of modules.
_PREFIXES = ("module.", "_orig_mod.")


def read_foreign(path: Path, most: int) -> dict[str, Tensor]:
    """The named tensors of a checkpoint. most: bytes that it may have, packed and unpacked.

    Raises UserError where it is too large or holds something else than named tensors; DamagedError where its name tells
    another checksum (as torchvision's do).
    """
    _check_size(path, most)
    if path.suffix == ".safetensors":
        return dict(_tensors(load_tree(path)[0]))
    _check_name(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken archive, or one that holds more than tensors
        raise UserError(f"{path}: cannot be read as tensors alone ({first_line(error)})") from error
    for key in _WITHIN:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = dict(_tensors(found)) if isinstance(found, Mapping) else {}
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name, but a {type(found).__name__}")
    return tensors


def _tensors(tree: Mapping[Any, Any], before: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in tree.items():
        name = before + str(key)
        if isinstance(value, Tensor) and not value.is_sparse and not value.is_quantized:
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            yield name, value.detach().clone()
        elif isinstance(value, Mapping):
            yield from _tensors(value, f"{name}.")


def _check_size(path: Path, most: int) -> None:
    size = path.stat().st_size
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = max(size, sum(each.file_size for each in archive.infolist()))
    if size > most:
        raise UserError(f"{path}: has {size:,} bytes, unpacked, and --max-size allows {most:,}")


def _check_name(path: Path) -> None:
    """torchvision's names tell the first digits of a file's SHA-256: resnet18-f37072fd.pth."""
    told = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if told is None:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    if not digest.hexdigest().startswith(told[1]):
        raise DamagedError(f"{path}: its SHA-256 begins with {digest.hexdigest()[:8]}, and its name tells {told[1]}")
