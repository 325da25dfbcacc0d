"""Randomness as a function: draws depend on (seed, purpose, counters) and on nothing else.

So a resumed run, a replicate, or another device sees the same draws without any saved generator state. Draws are made
on the CPU, whose generator is the same on every machine, and then moved.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor


def key(seed: int, purpose: str, *counters: int | str) -> int:
    """A 63-bit key, well mixed: neighbouring seeds and counters give unrelated streams."""
    text = "/".join(str(part) for part in (seed, purpose, *counters))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *counters: int | str) -> torch.Generator:
    """A fresh CPU generator for one purpose."""
    return torch.Generator().manual_seed(key(seed, purpose, *counters))


def permutation(n: int, seed: int, purpose: str, *counters: int | str) -> Tensor:
    """A permutation of 0 … n-1, int64, on the CPU."""
    return torch.randperm(n, generator=generator(seed, purpose, *counters))


def first_of_permutation(count: int, n: int, seed: int, purpose: str, *counters: int | str) -> Tensor:
    """The first `count` numbers of `permutation(n, …)`, in time that grows with `count` alone.

    `torch.randperm` swaps each place with a later one, from the first place on, by a draw of 32 bits of a Mersenne
    Twister each, and NumPy's, seeded alike, draws the same.
    """
    if n >= _SHUFFLED_FROM:  # another algorithm
        return permutation(n, seed, purpose, *counters)[:count]
    twister = np.random.RandomState(key(seed, purpose, *counters) & _MASK)
    moved, found = dict[int, int](), []
    for at, drawn in enumerate(twister.randint(0, 1 << 32, count, np.uint32).tolist()):
        other = at + drawn % (n - at)
        found.append(moved.get(other, other))
        moved[other] = moved.get(at, at)
    return torch.tensor(found, dtype=torch.int64)


def distinct(count: int, of: int, draw: torch.Generator) -> Tensor:
    """`count` different numbers from 0 … of-1, each set of them as likely as any other: int64 (count,), rising.

    Nothing of size `of` is made, unless that is a few bytes for each of the numbers.
    """
    if 2 * count > of:
        left = torch.ones(of, dtype=torch.bool).index_fill_(0, distinct(of - count, of, draw), False)
        return left.nonzero().flatten()
    if of <= _MARKED * count:
        return _marked(count, of, draw)
    found = np.empty(0, np.int64)  # NumPy sorts eight times as fast as PyTorch
    while len(found) < count:  # as many more as are missing: those drawn twice count once
        more = np.sort(torch.randint(of, (count - len(found),), generator=draw).numpy())
        more = more[np.diff(more, prepend=-1) > 0]
        places = np.searchsorted(found, more)
        new = np.append(found, -1)[places] != more
        found = np.insert(found, places[new], more[new]) if len(found) else more
    return torch.from_numpy(found)


#: Numbers to draw from, for each one wanted, up to which they are marked instead of sorted: a byte is written for each.
_MARKED = 32


def _marked(count: int, of: int, draw: torch.Generator) -> Tensor:
    """What `distinct` gives, by the same draws."""
    marks, missing = np.zeros(of, np.bool_), count
    while missing:
        marks[torch.randint(of, (missing,), generator=draw).numpy()] = True
        missing = count - int(np.count_nonzero(marks))
    return torch.from_numpy(np.flatnonzero(marks))


#: Numbers from which on `torch.randperm` takes another algorithm.
_SHUFFLED_FROM = (2**32 - 1) // 20

#: All counter-based draws are made of 32 bits, held in int64 so that products don't overflow.
_MASK = 0xFFFFFFFF
# Multipliers of lowbias32 (C. Wellons, "Prospecting for Hash Functions", 2018), the second one less 2³² to fit.
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)
_GOLDEN = 0x9E3779B9 - (1 << 32)


def counter_key(seed: int, purpose: str) -> Tensor:
    """A key for draws inside a step: an int64 scalar in [0, 2³²), which `fold_in` turns into others."""
    return torch.tensor(key(seed, purpose) & _MASK)


def fold_in(key: Tensor, number: Tensor | int) -> Tensor:
    """A new key from a key and a number (a step, a layer), or as many as `number` (int64, below 2³¹) has entries.

    Integer arithmetic only: the same on every device, compiled or not, and under vmap.
    """
    return _mixed((_mixed(key) + number * _GOLDEN) & _MASK)


def integers(key: Tensor, n: int, high: int, first: int = 0) -> Tensor:
    """Draws number `first` to `first + n - 1` from 0 … high-1, int64, as a function of the key."""
    return (fold_in(key, torch.arange(first, first + n, device=key.device)) * high) >> 32


def _mixed(bits: Tensor) -> Tensor:
    bits = bits ^ (bits >> 16)
    bits = (bits * _FIRST) & _MASK
    bits = bits ^ (bits >> 15)
    bits = (bits * _SECOND) & _MASK
    return _written(bits ^ (bits >> 16))


def _written(bits: Tensor) -> Tensor:
    """The same numbers, written to memory.

    A compiler would otherwise inline each expression into each of its uses, and take minutes.
    """
    flat = bits.reshape(-1)
    places = torch.arange(flat.numel(), device=bits.device)
    return torch.zeros_like(flat).scatter(0, places, flat).view(bits.shape)
