"""Trees as safetensors: no pickle, configuration in the metadata, nothing half-written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.trees.types import Ticket

_TICKET = "lthfunc.ticket/1"
_ORDER = "order"
#: All metadata stands under one key: safetensors writes several in random order, and equal trees should give
#: equal files.
METADATA_KEY = "lthfunc"
#: Between the names of nested dictionaries; a parameter's own name has dots, never a slash.
_SEPARATOR = "/"


def save_tree(path: str | os.PathLike[str], tree: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> None:
    """Write nested dictionaries of tensors; `metadata` (JSON values) goes into the file's header.

    The file appears whole or not at all.
    """
    flat = _flatten(tree)
    # safetensors sorts its entries; the order of layers matters.
    header = {METADATA_KEY: json.dumps({**(metadata or {}), _ORDER: list(flat)})}
    payload = safetensors.torch.save({name: leaf.detach().cpu().contiguous() for name, leaf in flat.items()}, header)
    write_atomically(path, payload)


def load_tree(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read (tree, metadata) as `save_tree` wrote them. Raises UserError where the file can't be read."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            flat = {name: file.get_tensor(name) for name in header.pop(_ORDER, file.keys())}
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a safetensors file ({error})") from error
    return _nest(flat), header


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save_tree` wrote, without reading the tensors. Raises UserError as `load_tree` does."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    except (OSError, safetensors.SafetensorError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a safetensors file ({error})") from error
    return header


def save_ticket(path: str | os.PathLike[str], ticket: Ticket, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a ticket; bit-exact when read back."""
    save_tree(path, ticket._asdict(), {"format": _TICKET, **(metadata or {})})


def load_ticket(path: str | os.PathLike[str]) -> tuple[Ticket, dict[str, Any]]:
    """Read (ticket, metadata). Raises UserError where the file is not a ticket."""
    tree, metadata = load_tree(path)
    if metadata.get("format") != _TICKET:
        raise UserError(f"{path}: is not a ticket (its format is {metadata.get('format')!r}, not {_TICKET!r})")
    return Ticket(tree.get("params", {}), tree.get("buffers", {}), tree.get("masks", {})), metadata


def write_atomically(path: str | os.PathLike[str], payload: bytes) -> None:
    """Write beside the target, then rename: a reader, or a crash, never sees half a file."""
    with appearing(path) as temporary, temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def appearing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A file beside the target, to be written in the block; at its end without an error it takes the target's name."""
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        yield Path(temporary)
        # mkstemp makes private files; give the result the permissions an ordinary write would have.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for name, value in tree.items():
        if _SEPARATOR in name:
            raise ValueError(f"tree key {name!r} must not contain {_SEPARATOR!r}")
        if isinstance(value, torch.Tensor):
            flat[prefix + name] = value
        else:
            flat.update(_flatten(value, f"{prefix}{name}{_SEPARATOR}"))
    return flat


def _nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split(_SEPARATOR)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
