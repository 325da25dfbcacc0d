"""Trees in safetensors files: no pickle, metadata in the header, never half-written."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from lthfunc.argument_hints import described
from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.printable import dtype_name
from lthfunc.trees.atomic_io import write_atomically
from lthfunc.trees.packed_trees import OnPlaces, PackedLeaves, packed_leaves, unpacked
from lthfunc.trees.types import Ticket

_TICKET = "lthfunc.ticket/1"
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_ORDER = "order"
#: Of a file as `packed_trees` has it, in its first form.
_PACKED = "packed/1"
#: The longest header in bytes, as in safetensors itself.
_LONGEST_HEADER = 100_000_000
#: All metadata is under one key: safetensors writes several in random order, and equal trees should give equal files.
METADATA_KEY = "lthfunc"
#: Separates the names of nested dictionaries; parameter names contain dots, but no slash.
_SEPARATOR = "/"


@public
def save_tree(
    path: str | os.PathLike[str],
    tree: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
) -> None:
    """Write nested dictionaries of tensors to a safetensors file, which appears whole or not at all.

    path: of the file. tree: tensors, or dictionaries of them by name, at any depth. metadata: JSON values for the
    file's header, under any names but "order" and "packed/1", which the file has itself. packed: whether masks are
    written as bits or places, and leaves that are mostly zero without their zeros; `load_tree` reads it the same, other
    programs don't. Raises UserError for anything else.

    >>> lf.save_tree("tree.safetensors", {"layer": {"w": torch.ones(2)}}, {"made by": "me"})
    >>> lf.load_tree("tree.safetensors")
    ({'layer': {'w': tensor([1., 1.])}}, {'made by': 'me'})
    """
    write_atomically(path, tree_bytes(tree, metadata, packed=packed))


def tree_bytes(tree: Mapping[str, Any], metadata: Mapping[str, Any] | None = None, *, packed: bool = False) -> bytes:
    """The content of a file that `save_tree` writes; equal trees give equal bytes.

    tree: its leaves may be `OnPlaces`. packed: as `packed_trees` has them.
    """
    for name in (_ORDER, _PACKED):
        if name in (metadata or {}):
            raise invalid("metadata", name, f"another name: the file itself has {_ORDER!r} and {_PACKED!r}")
    leaves = {name: _on_cpu(leaf) for name, leaf in _flat(tree, (Tensor, OnPlaces)).items()}
    about, seen = {**(metadata or {}), _ORDER: list(leaves)}, set()
    if packed:
        flat, *rest = packed_leaves(leaves)
        about[_PACKED] = dict(zip(PackedLeaves._fields[1:], rest, strict=True))
    else:
        flat = {name: leaf.dense() if isinstance(leaf, OnPlaces) else leaf for name, leaf in leaves.items()}
    for name, leaf in flat.items():
        memory = leaf.untyped_storage().data_ptr()
        flat[name] = leaf.clone() if memory in seen else leaf  # safetensors refuses tensors that share memory
        seen.add(memory)
    # safetensors sorts its entries; the order of layers matters.
    try:
        header = {METADATA_KEY: json.dumps(about)}
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"metadata: invalid value (expected JSON values: {error})") from error
    return safetensors.torch.save(flat, header)


def _on_cpu(leaf: Tensor | OnPlaces) -> Tensor | OnPlaces:
    return leaf if isinstance(leaf, OnPlaces) else leaf.detach().cpu().contiguous()


@public
def load_tree(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a file of `save_tree` at `path`. Returns (tree, metadata). Raises UserError where it cannot be read.

    >>> lf.save_tree("tree.safetensors", {"w": torch.ones(2)})
    >>> lf.load_tree("tree.safetensors")
    ({'w': tensor([1., 1.])}, {})
    """
    if Path(path).is_dir():
        names = ", ".join(sorted(each.name for each in Path(path).glob("*.safetensors"))) or "it has none"
        raise UserError(f"{path}: is a folder; name one of its .safetensors files ({names})")
    if not str(path).isascii():  # a name that is not UTF-8, which the library can't take
        with _reading(path):
            payload = Path(path).read_bytes()
        return tree_of(payload, path)
    with _reading(path), safetensors.safe_open(str(path), framework="pt") as file:
        return _tree(_header_of(file.metadata()), file.keys(), file.get_tensor)


def tree_of(payload: bytes, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, metadata) from a file's content. path: for messages. Raises UserError as `load_tree` does."""
    with _reading(path):
        flat = safetensors.torch.load(payload)
        size = int.from_bytes(payload[:8], "little")
        metadata = json.loads(payload[8 : 8 + size]).get("__metadata__")
        return _tree(_header_of(metadata), flat, flat.__getitem__)


def _tree(
    header: dict[str, Any], names: Iterable[str], tensor: Callable[[str], Tensor]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tree, metadata) of a file with these tensors. Raises ValueError where its header names others."""
    order, about = header.pop(_ORDER, None), header.pop(_PACKED, None)
    if about is not None:
        if sorted({*order, *about["shapes"]}) != sorted(names):
            raise ValueError("its header and its tensors don't match")
        return _nest(unpacked(order, tensor, about)), header
    if order is not None and sorted(order) != sorted(names):
        raise ValueError("its header and its tensors don't match")
    return _nest({name: tensor(name) for name in order or names}), header


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata that `save_tree` wrote, without reading the tensors. Raises UserError as `load_tree` does."""
    with _reading(path), Path(path).open("rb") as file:
        return header_in(file, path)


def header_in(file: BinaryIO, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of an open file, checked against its size. path: for messages. Raises UserError."""
    with _reading(path):
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            raise ValueError("its header is cut off")
        header = json.loads(file.read(length))
        ends = [about["data_offsets"][1] for name, about in header.items() if name != "__metadata__"]
        if max(ends, default=0) != size - 8 - length:
            raise ValueError("it is cut off")
        return _header_of(header.get("__metadata__"))


def _header_of(metadata: Mapping[str, str] | None) -> dict[str, Any]:
    header = json.loads((metadata or {}).get(METADATA_KEY, "{}"))
    if not isinstance(header, dict):
        raise TypeError("its metadata is not an object")
    return header


@contextmanager
def _reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn whatever reading a file raises into one line that names the file."""
    try:
        yield
    except UserError:
        raise
    except (
        OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError,
        OverflowError, RecursionError, MemoryError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a safetensors file ({reason})") from error


@public
def save_ticket(
    path: str | os.PathLike[str],
    ticket: Ticket,
    metadata: Mapping[str, Any] | None = None,
    *,
    packed: bool = False,
) -> None:
    """Write a ticket to a safetensors file at `path`; it is read back bit for bit.

    metadata: JSON values for the file's header, as `save_tree` takes them; a "format" only as `load_ticket` returns it.
    packed: as `save_tree` takes it. Raises UserError for other metadata.

    >>> ticket = lf.ticket(lf.init(lf.from_module(nn.Linear(4, 2))))
    >>> lf.save_ticket("ticket.safetensors", ticket, {"seed": 0})
    >>> lf.same_bits(lf.load_ticket("ticket.safetensors")[0], ticket)
    True
    """
    write_atomically(path, ticket_bytes(ticket, metadata, packed=packed))


def ticket_bytes(ticket: Ticket, metadata: Mapping[str, Any] | None = None, *, packed: bool = False) -> bytes:
    """The content of a file that `save_ticket` writes."""
    kind = (metadata or {}).get("format", _TICKET)
    if kind != _TICKET:
        raise invalid("metadata: 'format'", kind, f"none, or {_TICKET!r}")
    return tree_bytes(ticket._asdict(), {"format": _TICKET, **(metadata or {})}, packed=packed)


@public
def load_ticket(path: str | os.PathLike[str]) -> tuple[Ticket, dict[str, Any]]:
    """Read a file of `save_ticket` at `path`. Returns (ticket, metadata). Raises UserError where it holds no ticket.

    >>> lf.save_ticket("ticket.safetensors", lf.ticket(lf.init(lf.from_module(nn.Linear(4, 2)))))
    >>> ticket, metadata = lf.load_ticket("ticket.safetensors")
    >>> lf.count(ticket.masks)
    Count(kept=8, total=8)
    """
    return _ticket(*load_tree(path), path)


def ticket_of(payload: bytes, path: str | os.PathLike[str]) -> tuple[Ticket, dict[str, Any]]:
    """(ticket, metadata) from a file's content. path: for messages. Raises UserError as `load_ticket` does."""
    return _ticket(*tree_of(payload, path), path)


def _ticket(
    tree: dict[str, Any], metadata: dict[str, Any], path: str | os.PathLike[str]
) -> tuple[Ticket, dict[str, Any]]:
    if metadata.get("format") != _TICKET:
        raise UserError(f"{path}: is not a ticket (its format is {metadata.get('format')!r}, not {_TICKET!r})")
    return Ticket(tree.get("params", {}), tree.get("buffers", {}), tree.get("masks", {})), metadata


def flatten(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of nested dictionaries, by their names joined with slashes. Raises UserError for anything else."""
    return _flat(tree, (Tensor,))


def _flat(tree: Mapping[str, Any], kinds: tuple[type, ...], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if _SEPARATOR in name:
            raise ValueError(f"tree key {name!r} must not contain {_SEPARATOR!r}")
        if isinstance(value, kinds):
            flat[prefix + name] = value
        elif not isinstance(value, Mapping):
            raise UserError(f"tree: {prefix + name!r} must be a tensor or a dict of them, not {described(value)}")
        else:
            flat.update(_flat(value, kinds, f"{prefix}{name}{_SEPARATOR}"))
    return flat


def _nest(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split(_SEPARATOR)
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise TypeError(f"it holds {path!r} inside a tensor")
        node[name] = leaf
    return tree


def check_storable(module: nn.Module) -> None:
    """Raise UserError, with its name, for a parameter or buffer that no file can hold."""
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        reason = why_not_storable(leaf)
        if reason is not None:
            raise UserError(
                f"{type(module).__name__}: {name} is {reason}, which a ticket's file cannot hold (expected a dense "
                "tensor of floats, integers or booleans)"
            )


def why_not_storable(leaf: Tensor) -> str | None:
    """Why no file can hold a tensor, as the end of a sentence; None where one can."""
    if leaf.is_quantized:
        return "quantised"
    if leaf.layout is not torch.strided:
        return f"of a sparse layout ({dtype_name(leaf.layout)})"
    if leaf.device.type == "meta":
        return "on the meta device and has no values"
    if type(leaf) not in _PLAIN and not nn.parameter.is_lazy(leaf):
        return f"a {type(leaf).__name__}, a kind of tensor of its own"
    return None if _has_code(leaf.dtype) else f"of the type {dtype_name(leaf.dtype)}"


@functools.cache
def _has_code(dtype: torch.dtype) -> bool:
    try:
        safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError):
        return False
    return True
