"""Trees in files on their survivors: leaves that are mostly zero as the numbers that are not, and where those lie.

A mask is bits, eight to a byte, or the places of what remains, whichever takes less. Leaves of one name and shape
(params, moments, the network chosen so far) share a mask where everything outside it is zero; others have places of
their own. Nothing is lost: only what is +0.0 to the bit is left out. Who has leaves on their survivors writes them
without dense ones (`OnPlaces`), to the same bytes.
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


class OnPlaces(NamedTuple):
    """A leaf on its survivors: all other numbers are +0.0, or False.

    values: (n,). places: int64 (n,), where they lie in the flattened leaf, rising. shape: of the leaf.
    """

    values: Tensor
    places: Tensor
    shape: torch.Size

    def dense(self) -> Tensor:
        """The leaf."""
        return scattered(self.values, self.places, self.shape)


def mask_on(places: Tensor, shape: torch.Size) -> OnPlaces:
    """A mask that is True at these places."""
    return OnPlaces(torch.ones(1, dtype=torch.bool).expand(len(places)), places, shape)


class _Places(NamedTuple):
    """Where numbers are. name: of the tensor that says so; places: in the flattened leaf, int64, rising."""

    name: str
    places: Tensor


class PackedLeaves(NamedTuple):
    """Leaves as a file has them. tensors: by name. shapes: of masks and places. places: a packed leaf's, by name."""

    tensors: dict[str, Tensor]
    shapes: dict[str, list[int]]
    places: dict[str, str]


def packed_leaves(flat: Mapping[str, Tensor | OnPlaces]) -> PackedLeaves:
    """Leaves on the CPU, by their paths: masks as bits or places, and without zeros where these are half of a leaf.

    >>> leaf = torch.zeros(100).index_fill(0, torch.tensor([3]), 5.0)
    >>> found = packed_leaves({"w": leaf})
    >>> found.tensors["w"], torch.equal(unpacked(["w"], found.tensors.__getitem__, found._asdict())["w"], leaf)
    (tensor([5.]), True)
    """
    found = PackedLeaves({}, {}, {})
    known = dict[tuple[str, torch.Size], list[_Places]]()

    def add(path: str, name: str, places: Tensor, shape: torch.Size) -> _Places:
        where = _Places(name, places)
        known.setdefault((_last(path), shape), []).append(where)
        found.tensors[name], found.shapes[name] = _stored(places, shape.numel()), list(shape)
        return where

    for path, leaf in flat.items():
        if _is_mask(leaf):
            add(path, path, leaf.places if isinstance(leaf, OnPlaces) else _nonzero(leaf), leaf.shape)
    for path, leaf in flat.items():
        if path in found.tensors:
            continue
        numbers = _numbers(leaf)
        if numbers is None:
            found.tensors[path] = leaf.dense() if isinstance(leaf, OnPlaces) else leaf
            continue
        count, most = numbers.count, leaf.shape.numel() // 2
        for where in known.get((_last(path), leaf.shape), []):
            values = numbers.at(where.places) if count <= len(where.places) <= most else None
            if values is not None:
                found.tensors[path], found.places[path] = values, where.name
                break
        else:
            if count <= most:
                where = add(path, f"{path}/places", numbers.places(), leaf.shape)
                found.tensors[path], found.places[path] = numbers.all(), where.name
            else:
                found.tensors[path] = leaf.dense() if isinstance(leaf, OnPlaces) else leaf
    return found


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _nonzero(leaf: Tensor) -> Tensor:
    return leaf.flatten().nonzero().flatten()


def _is_mask(leaf: Tensor | OnPlaces) -> bool:
    values = leaf.values if isinstance(leaf, OnPlaces) else leaf
    return values.dtype == torch.bool and leaf.shape.numel() >= _LEAST


class _Numbers:
    """What is in a leaf. values: all its numbers (n,), or those at `given`, places that rise; bits: theirs."""

    def __init__(self, values: Tensor, bits: Tensor, given: Tensor | None) -> None:
        self._values, self._bits, self._given = values, bits, given
        self.count = int(bits.count_nonzero())

    def places(self) -> Tensor:
        """Of what is not +0.0."""
        live = _nonzero(self._bits)
        return live if self._given is None else self._given.index_select(0, live)

    def all(self) -> Tensor:
        """At these places."""
        return self._values.index_select(0, _nonzero(self._bits))

    def at(self, places: Tensor) -> Tensor | None:
        """The numbers at these places; None where one elsewhere is not +0.0."""
        if self._given is None:
            left = int(self._bits.index_select(0, places).count_nonzero())
            return self._values.index_select(0, places) if left == self.count else None
        if self._given is places or torch.equal(self._given, places):
            return self._values
        spread = torch.zeros(len(places), dtype=self._values.dtype)
        if self.count:
            live = _nonzero(self._bits)
            own = self._given.index_select(0, live)
            here = torch.searchsorted(places, own).clamp_(max=len(places) - 1)
            if not torch.equal(places.index_select(0, here), own):
                return None
            spread.index_copy_(0, here, self._values.index_select(0, live))
        return spread


def _numbers(leaf: Tensor | OnPlaces) -> _Numbers | None:
    """What is in a leaf; None where it is stored as it is."""
    values, given = (leaf.values, leaf.places) if isinstance(leaf, OnPlaces) else (leaf.flatten(), None)
    whole = _WHOLE.get(values.element_size()) if values.is_floating_point() or values.is_complex() else None
    return None if whole is None or leaf.shape.numel() < _LEAST else _Numbers(values, values.view(whole), given)


def _stored(places: Tensor, size: int) -> Tensor:
    """A mask of so many numbers as a file has it: bits, or its places."""
    count = len(places)
    if _BITS_A_PLACE * count < size <= _SPARSEST * count:
        return places.to(torch.int32 if size < 2**31 else torch.int64)
    return bits_at(places, size)


def bits_at(places: Tensor, size: int) -> Tensor:
    """A mask of so many numbers that is True at these places, eight to a byte, as `numpy.packbits` has them."""
    bits = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8).index_select(0, places & 7)
    return torch.zeros(-(-size // 8), dtype=torch.uint8).index_add_(0, places >> 3, bits)


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
