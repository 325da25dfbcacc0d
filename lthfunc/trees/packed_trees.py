"""Trees in files on their survivors: leaves that are mostly zero as the numbers that are not, and where those lie.

A mask is bits, eight to a byte, or the places of what remains, whichever takes less. Leaves of one name and shape
(params, moments, the network chosen so far) share a mask where everything outside it is zero; others have places of
their own. Nothing is lost: only what is +0.0 to the bit is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.trees.ops import scattered

#: Leaves of fewer numbers are stored as they are: their line in the header would take more.
_LEAST = 64
#: A list of places takes less than bits where fewer than one in so many remains ...
_BITS_A_PLACE = 32
#: ... and is used down to one in so many, so that no file can claim a tree thousands of times its own size.
_SPARSEST = 4096
#: Whole numbers of as many bytes, to look at bits.
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Places(NamedTuple):
    """Where numbers are. name: of the tensor that says so; places: in the flattened leaf, int64, rising."""

    name: str
    places: Tensor


class PackedLeaves(NamedTuple):
    """Leaves as a file has them. tensors: by name. shapes: of masks and places. places: a packed leaf's, by name."""

    tensors: dict[str, Tensor]
    shapes: dict[str, list[int]]
    places: dict[str, str]


def packed_leaves(flat: Mapping[str, Tensor]) -> PackedLeaves:
    """Leaves on the CPU, by their paths: masks as bits or places, and without zeros where these are half of a leaf.

    >>> leaf = torch.zeros(100).index_fill(0, torch.tensor([3]), 5.0)
    >>> found = packed_leaves({"w": leaf})
    >>> found.tensors["w"], torch.equal(unpacked(["w"], found.tensors.__getitem__, found._asdict())["w"], leaf)
    (tensor([5.]), True)
    """
    found = PackedLeaves({}, {}, {})
    known = dict[tuple[str, torch.Size], list[_Places]]()

    def add(path: str, name: str, mask: Tensor) -> _Places:
        where = _Places(name, mask.flatten().nonzero().flatten())
        known.setdefault((_last(path), mask.shape), []).append(where)
        found.tensors[name], found.shapes[name] = _stored(mask, where.places), list(mask.shape)
        return where

    for path, leaf in flat.items():
        if leaf.dtype == torch.bool and leaf.numel() >= _LEAST:
            add(path, path, leaf)
    for path, leaf in flat.items():
        bits = _bits(leaf)
        if bits is None:
            found.tensors.setdefault(path, leaf)
            continue
        count = int(bits.count_nonzero())
        where = next((each for each in known.get((_last(path), leaf.shape), []) if _covers(each, bits, count)), None)
        if where is None and 2 * count <= len(bits):
            where = add(path, f"{path}/places", (bits != 0).view(leaf.shape))
        if where is None:
            found.tensors[path] = leaf
        else:
            found.tensors[path], found.places[path] = leaf.flatten().index_select(0, where.places), where.name
    return found


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _bits(leaf: Tensor) -> Tensor | None:
    """A leaf's bits as whole numbers (n,); None where it stays as it is."""
    whole = _WHOLE.get(leaf.element_size()) if leaf.is_floating_point() or leaf.is_complex() else None
    return None if whole is None or leaf.numel() < _LEAST else leaf.flatten().view(whole)


def _covers(where: _Places, bits: Tensor, count: int) -> bool:
    """Whether a leaf's `count` numbers that are not zero all lie there, and these places are at most half of it."""
    size = len(where.places)
    return count <= size <= len(bits) // 2 and int(bits.index_select(0, where.places).count_nonzero()) == count


def _stored(mask: Tensor, places: Tensor) -> Tensor:
    """A mask as a file has it: bits, or its places."""
    size, count = mask.numel(), len(places)
    if _BITS_A_PLACE * count < size <= _SPARSEST * count:
        return places.to(torch.int32 if size < 2**31 else torch.int64)
    return torch.from_numpy(np.packbits(mask.numpy()))


def unpacked(paths: Iterable[str], tensor: Callable[[str], Tensor], about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The leaves again, by these paths. tensor: reads one of `PackedLeaves`, by name. about: the rest of it.

    Raises ValueError, TypeError, KeyError or RuntimeError for what `packed_leaves` has not made.
    """
    shapes = {name: _shape(shape) for name, shape in about["shapes"].items()}
    places = {name: _places(tensor(name), shape) for name, shape in shapes.items()}
    found = dict[str, Tensor]()
    for path in paths:
        if path in shapes:
            found[path] = scattered(torch.ones(len(places[path]), dtype=torch.bool), places[path], shapes[path])
        elif path in about["places"]:
            values, where = tensor(path), about["places"][path]
            if values.shape != places[where].shape:
                raise ValueError(f"{path} has {values.numel():,} numbers for {len(places[where]):,} places")
            found[path] = scattered(values, places[where], shapes[where])
        else:
            found[path] = tensor(path)
    return found


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{shape!r} is no shape")
    return tuple(shape)


def _places(stored: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The places of a stored mask: int64, rising."""
    size, count = math.prod(shape), len(stored)
    if stored.dtype == torch.uint8:
        if stored.shape != (-(-size // 8),):
            raise ValueError(f"a mask of shape {shape} has {count:,} bytes of bits")
        return torch.from_numpy(np.unpackbits(stored.numpy(), count=size)).nonzero().flatten()
    if stored.ndim != 1 or stored.dtype not in (torch.int32, torch.int64) or not 0 < size <= _SPARSEST * count:
        raise ValueError(f"a mask of shape {shape} has {count:,} places")
    if int(stored[0]) < 0 or int(stored[-1]) >= size or not bool((stored.diff() > 0).all()):
        raise ValueError(f"places are not rising numbers below {size:,}")
    return stored.long()
