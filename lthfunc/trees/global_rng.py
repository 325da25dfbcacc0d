"""Python's and NumPy's global generators, which a module's forward may use: seeded in a block and restored after it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def seed_python_and_numpy(seed: int) -> None:
    """Seed both; call it within `preserved_python_and_numpy`."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def preserved_python_and_numpy() -> Iterator[None]:
    """Restore the state of both generators at the end of the block."""
    before, other = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(other)


def seed_cpu_generators(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators of the CPU; call it within `preserved_cpu_generators`."""
    seed_python_and_numpy(seed)
    torch.default_generator.manual_seed(seed)


@contextmanager
def preserved_cpu_generators() -> Iterator[None]:
    """Restore the state of the three generators at the end of the block."""
    with preserved_python_and_numpy(), torch.random.fork_rng(devices=[]):
        yield


@contextmanager
def seeded_generators(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """All global generators, PyTorch's included, seeded in the block and restored at its end."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with preserved_python_and_numpy(), torch.random.fork_rng(devices=devices):
        seed_cpu_generators(seed)  # alone: others would be seeded at their next use, and not be restored
        if devices:
            torch.manual_seed(seed)
        yield


def generators_used(seed: int) -> list[str]:
    """The names of the generators that have been used since both were seeded with `seed`."""
    now, other = random.getstate(), np.random.get_state()
    with preserved_python_and_numpy():
        seed_python_and_numpy(seed)
        used = {
            "Python's random": now != random.getstate(),
            "NumPy's random": not all(map(np.array_equal, other, np.random.get_state())),
        }
    return [name for name, changed in used.items() if changed]


def seeded_state(seed: int, device: torch.device) -> Tensor:
    """The state, once seeded, of the generator from which random layers on a device draw: CUDA's own, or the CPU's."""
    return torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed).get_state()
