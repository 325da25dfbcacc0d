"""Randomness as a function: what is drawn depends on (seed, purpose, counters) and on nothing else.

So a run that resumes, a replicate, or another device sees the same draws without any saved generator state.
Draws are made on the CPU, whose generator is the same on every machine, and moved afterwards.
"""

from __future__ import annotations

import hashlib

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
