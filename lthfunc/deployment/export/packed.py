"""A ticket in about as few bytes as its mask's entropy allows, and back.

The gaps between survivors are coded by Golomb and Rice's code (Golomb 1966; Rice 1979): the gap's last `bits` bits as
they are, the rest in unary. At a random mask of 5 % that takes 1.03 times the entropy of the positions, where a bitmap
takes 3.5 times. Both parts lie apart, so that all of it is read and written by array operations. A mask that a bitmap
holds in fewer bytes gets one. Values are float32, or float16.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.deployment.export.exportable import Exportable
from lthfunc.errors import UserError
from lthfunc.trees.files import load_tree, save_tree
from lthfunc.trees.types import Masks, Ticket

_FORMAT = "lthfunc.packed/1"
_GAPS, _BITMAP = "gaps", "bitmap"


class Coded(NamedTuple):
    """A mask in bytes. bits: of a gap that are kept as they are; -1 for a bitmap."""

    kind: str
    bits: int
    high: NDArray[np.uint8]
    low: NDArray[np.uint8]

    @property
    def size(self) -> int:
        """Bytes."""
        return self.high.nbytes + self.low.nbytes


def packed(subject: Exportable, path: Path) -> list[Path]:
    """A safetensors file with survivors and coded positions; `load_packed` reads it."""
    save_packed(path, subject.ticket, half=subject.half)
    return []


@public
def save_packed(path: Path, ticket: Ticket, *, half: bool = False) -> None:
    """Write a ticket packed. half: values as float16, which rounds them."""
    kind = torch.float16 if half else torch.float32
    leaves: list[Any] = []  # name, shape, and of masks: survivors, code, its bits, bytes of both its parts
    values, codes, rest = [], [], []
    for name, leaf in ticket.params.items():
        leaf = leaf.detach().cpu()
        if name not in ticket.masks:
            leaves.append([name, list(leaf.shape)])
            rest.append(leaf.flatten().to(kind))
            continue
        mask = ticket.masks[name].cpu()
        coded = encode(mask)
        kept = leaf[mask].to(kind)
        leaves.append([name, list(mask.shape), len(kept), coded.kind, coded.bits, len(coded.high), len(coded.low)])
        values.append(kept)
        codes += [torch.from_numpy(coded.high), torch.from_numpy(coded.low)]
    tree: dict[str, Any] = {
        "values": torch.cat([torch.zeros(0, dtype=kind), *values]),
        "positions": torch.cat([torch.zeros(0, dtype=torch.uint8), *codes]),
        "rest": torch.cat([torch.zeros(0, dtype=kind), *rest]),
        "buffers": dict(ticket.buffers),
    }
    save_tree(path, tree, {"format": _FORMAT, "leaves": leaves})


@public
def load_packed(path: Path | str) -> Ticket:
    """Read a packed ticket; values are float32. Raises UserError where the file is none."""
    tree, about = load_tree(path)
    if about.get("format") != _FORMAT:
        raise UserError(f"{path}: is not a packed ticket (its format is {about.get('format')!r}, not {_FORMAT!r})")
    values, positions, rest = _reader(tree["values"]), _reader(tree["positions"]), _reader(tree["rest"])
    masks: Masks = {}
    params: dict[str, Tensor] = {}
    for name, shape, *coding in about["leaves"]:
        if not coding:
            params[name] = rest(math.prod(shape)).float().view(shape)
            continue
        count, kind, bits, high, low = coding
        coded = Coded(kind, bits, positions(high).numpy(), positions(low).numpy())
        masks[name] = decode(coded, count, tuple(shape))
        params[name] = torch.zeros(shape)
        params[name][masks[name]] = values(count).float()
    return Ticket(params, tree.get("buffers", {}), masks)


def _reader(tensor: Tensor) -> Callable[[int], Tensor]:
    """Gives the next so many numbers."""
    first = 0

    def read(count: int) -> Tensor:
        nonlocal first
        first += count
        return tensor[first - count : first].clone()

    return read


def encode(mask: Tensor) -> Coded:
    """A mask in the smaller of both codes."""
    flat = mask.flatten().numpy()
    bitmap = Coded(_BITMAP, -1, np.packbits(flat), np.zeros(0, np.uint8))
    places = np.flatnonzero(flat)
    if not len(places):
        return Coded(_GAPS, 0, np.zeros(0, np.uint8), np.zeros(0, np.uint8))
    gaps = np.diff(places, prepend=-1) - 1
    mean = gaps.mean()
    guess = max(0, round(math.log2(mean * math.log(2)))) if mean > 1 else 0
    best = min((_gaps(gaps, bits) for bits in range(max(0, guess - 1), guess + 2)), key=lambda coded: coded.size)
    return best if best.size < bitmap.size else bitmap


def decode(coded: Coded, count: int, shape: tuple[int, ...]) -> Tensor:
    """The mask with so many survivors."""
    size = math.prod(shape)
    if coded.kind == _BITMAP:
        return torch.from_numpy(np.unpackbits(coded.high, count=size).astype(bool)).view(shape)
    flat = np.zeros(size, bool)
    if count:
        ends = np.flatnonzero(np.unpackbits(coded.high))[:count]
        quotients = np.diff(ends, prepend=-1) - 1
        rests = np.zeros(count, np.int64)
        if coded.bits:
            bits = np.unpackbits(coded.low, count=count * coded.bits).reshape(count, coded.bits)
            rests = bits @ (1 << np.arange(coded.bits - 1, -1, -1))
        flat[np.cumsum((quotients << coded.bits) + rests + 1) - 1] = True
    return torch.from_numpy(flat).view(shape)


def _gaps(gaps: NDArray[np.int64], bits: int) -> Coded:
    """So many bits of each gap as they are, the rest as that many zeros and a one."""
    ends = np.cumsum((gaps >> bits) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1, np.uint8)
    unary[ends] = 1
    low = (gaps[:, None] >> np.arange(bits - 1, -1, -1)) & 1
    return Coded(_GAPS, bits, np.packbits(unary), np.packbits(low.astype(np.uint8)))


def entropy_bytes(masks: Masks) -> float:
    """What positions take at the least, on average, where every mask of a layer's density is as likely as any other."""
    bits = 0.0
    for mask in masks.values():
        count, kept = mask.numel(), int(mask.sum())
        share = kept / count
        if 0 < share < 1:
            bits -= count * (share * math.log2(share) + (1 - share) * math.log2(1 - share))
    return bits / 8
