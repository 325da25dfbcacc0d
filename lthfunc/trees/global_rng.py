"""Python's and NumPy's global generators, which a module's forward may use: seeded in a block and restored after it."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def seed_python_and_numpy(seed: int) -> None:
    """Seed both; call it within `preserved_python_and_numpy`."""
    random.seed(seed)
    if (numpy := _numpy()) is not None:
        numpy.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def preserved_python_and_numpy() -> Iterator[None]:
    """Restore the state of both generators at the end of the block."""
    before, numpy = random.getstate(), _numpy()
    other = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        if numpy is not None:
            numpy.random.set_state(other)


@contextmanager
def seeded_generators(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """All global generators, PyTorch's included, seeded in the block and restored at its end."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with preserved_python_and_numpy(), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        seed_python_and_numpy(seed)
        yield


def generators_used(seed: int) -> list[str]:
    """The names of the generators that have been used since both were seeded with `seed`."""
    found = []
    now = random.getstate()
    numpy = _numpy()
    other = None if numpy is None else numpy.random.get_state()
    with preserved_python_and_numpy():
        seed_python_and_numpy(seed)
        if now != random.getstate():
            found.append("Python's random")
        if numpy is not None and not _same(other, numpy.random.get_state()):
            found.append("NumPy's random")
    return found


def _same(one: Any, other: Any) -> bool:
    return one[2:] == other[2:] and bool((one[1] == other[1]).all())


def _numpy() -> Any:
    """NumPy if it has been imported; otherwise nothing can use its generator."""
    return sys.modules.get("numpy")
