"""Checkpoints of other programs as plain tensors. The one place that reads pickled files, and by tensors alone.

``torch.load(weights_only=True)`` makes tensors and plain containers and nothing else; a file is refused before that if
it, or what is packed in it, is larger than it may be, or if the checksum that its name tells is another.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.errors import DamagedError, UserError
from lthfunc.models.naming import unwrapped
from lthfunc.tracebacks import first_line
from lthfunc.trees.files import load_tree, why_not_storable

#: Keys under which programs keep the weights within a checkpoint.
_WITHIN = ("state_dict", "model_state_dict", "model", "params", "net", "weights")
#: Bytes that a checkpoint may have, unless another limit is given.
MOST = 4 * 10**9
#: More dictionaries within one another, and more entries in all, than any network has.
_DEEPEST, _MOST_ENTRIES = 50, 1_000_000
_INSTEAD = "save the weights alone, with torch.save(net.state_dict(), FILE)"
_RAISE = "lthfunc import --max-size SIZE raises it"
_RESERVED = "__metadata__"


class ImportedCheckpoint(NamedTuple):
    """tensors: by name. notes: what was changed or left out, in words, a line each."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def import_checkpoint(path: Path, most: int = MOST) -> ImportedCheckpoint:
    """The named tensors of a checkpoint, without what wrappers put into their names.

    most: bytes that it may have, packed, unpacked, and written again as the tensors that it shows.

    Raises UserError where it is larger, holds something else than named tensors, or tensors that a safetensors file
    can't hold; DamagedError where its name tells another checksum (as torchvision's do).
    """
    _check_file(path, most)
    notes: list[str] = []
    if path.suffix == ".safetensors":
        found: Any = load_tree(path)[0]
    elif path.suffix == ".npz":
        found = _arrays(path)
    else:
        _check_name(path)
        found = _weights_of(_loaded(path), path, notes)
    tensors = _tensors(found, path, most)
    if not tensors:
        raise UserError(f"{path}: holds no tensors by name, but a {type(found).__name__}")
    new, taken = unwrapped(tensors)
    notes += [f"taken out of the names: {each!r}" for each in taken]
    return ImportedCheckpoint({new[name]: _plain(name, leaf, path) for name, leaf in tensors.items()}, tuple(notes))


def _loaded(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on kinds of tensors that are refused below
            with torch.serialization.safe_globals(_harmless()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken archive, or one that holds more than tensors
        other = re.search(r"GLOBAL ([\w.]+)", str(error))
        if other is not None:
            reason = f"it holds a {other[1]}; {_INSTEAD}"
        elif "TorchScript" in str(error):
            reason = f"it is a TorchScript program; {_INSTEAD}"
        elif isinstance(error, pickle.UnpicklingError):  # torch's own words advise to unpickle it all the same
            reason = f"it is a pickle of something else, or of no torch.save; {_INSTEAD}"
        else:
            reason = first_line(error)
        raise UserError(f"{path}: cannot be read as tensors alone ({reason})") from error


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of a NumPy archive. Raises UserError for other things in it."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: torch.from_numpy(archive[name]) for name in archive.files}
    except Exception as error:  # the system's, NumPy's or zipfile's own
        raise UserError(f"{path}: cannot be read as arrays of numbers alone ({first_line(error)})") from error


def _harmless() -> list[Any]:
    """Classes besides tensors that checkpoints often hold and that run nothing: numbers of NumPy, parsed arguments."""
    number = np.float64(0).__reduce__()[0]
    return [Namespace, number, np.dtype, *(type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + "?efd")]


def _weights_of(found: Any, path: Path, notes: list[str]) -> Any:
    """The dictionary of weights in a checkpoint; notes: what else was in it."""
    seen = set()
    while isinstance(found, Mapping):
        if id(found) in seen:
            raise UserError(f"{path}: is a dictionary that contains itself")
        seen.add(id(found))
        key = next((key for key in _WITHIN if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        others = [str(other) for other, value in found.items() if other != key and isinstance(value, (Mapping, Tensor))]
        if others:
            notes.append(f"taken from {key!r}; left out: {', '.join(others[:5])}{' …' if len(others) > 5 else ''}")
        found = found[key]
    return found


def _tensors(tree: Any, path: Path, most: int) -> dict[str, Tensor]:
    """The tensors of nested dictionaries, their keys joined by dots; what is no tensor is left out.

    Raises UserError as soon as they come to more than `most` bytes: views may be far larger than what they show.
    """
    if not isinstance(tree, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    size = entries = 0
    above: list[tuple[str, Mapping[Any, Any], frozenset[int]]] = [("", tree, frozenset())]
    while above:
        before, node, inside = above.pop()
        if id(node) in inside:
            raise UserError(f"{path}: is a dictionary that contains itself, at {before.rstrip('.')}")
        if len(inside) == _DEEPEST:
            raise UserError(f"{path}: has more than {_DEEPEST} dictionaries within one another")
        deeper = []
        for key, value in node.items():
            entries += 1
            name = before + str(key).replace("/", ".")
            if entries > _MOST_ENTRIES:
                raise UserError(f"{path}: has more than {_MOST_ENTRIES:,} entries")
            if isinstance(value, Mapping):
                deeper.append((f"{name}.", value, inside | {id(node)}))
            elif isinstance(value, Tensor):
                if name in found:
                    raise UserError(f"{path}: has two tensors of the name {name}")
                found[name] = value
                size += value.numel() * value.element_size()
                if size > most:
                    raise UserError(
                        f"{path}: has {size:,} bytes and more as tensors, above the limit of {most:,} ({_RAISE})"
                    )
        above += reversed(deeper)
    return found


def _plain(name: str, leaf: Tensor, path: Path) -> Tensor:
    """A tensor with memory of its own. Raises UserError for what a safetensors file cannot hold."""
    if (reason := why_not_storable(leaf)) is not None:
        raise UserError(f"{path}: {name} is {reason}, which safetensors files cannot hold; save a plain tensor of it")
    if name == _RESERVED or not name.isprintable():
        raise UserError(f"{path}: a tensor cannot have the name {name!r} in a safetensors file")
    return leaf.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)


def _check_file(path: Path, most: int) -> None:
    if not path.is_file():
        raise UserError(f"{path}: is {'a folder' if path.is_dir() else 'no regular file'}, not a checkpoint")
    size = path.stat().st_size
    if not size:
        raise UserError(f"{path}: is empty")
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(each.file_size for each in archive.infolist()))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
            raise UserError(f"{path}: cannot be read as tensors alone ({first_line(error)})") from error
    if size > most:
        raise UserError(f"{path}: has {size:,} bytes, unpacked, above the limit of {most:,} ({_RAISE})")


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
