"""Loaders that share nothing with the ones they are copies of: neither processes, nor generators."""

from __future__ import annotations

import copy
import multiprocessing
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from lthfunc.errors import UserError


def fresh(source: Any, part: str, seed: int | None = None) -> Any:
    """The same iterable; a copy of a `DataLoader`, whose own generators, and those of its samplers, are seeded.

    seed: None for another one each time, so that two readings of what draws with it differ. part: what messages call
    it. Raises UserError in a worker process for a loader that needs processes.
    """
    if not isinstance(source, DataLoader):
        return source
    if source.num_workers and multiprocessing.current_process().daemon:
        raise UserError(
            f"{part}: its DataLoader has num_workers={source.num_workers}, but worker processes cannot start others; "
            "use jobs 1, or num_workers=0"
        )
    found = copy.copy(source)
    found._iterator = None  # the one iterator of a loader with persistent workers
    if seed is None or found.generator is not None:  # otherwise it draws from the global one, which is seeded
        found.generator = _generator(seed)
    for name in ("sampler", "batch_sampler"):
        vars(found)[name] = _seeded(getattr(found, name), seed)  # a loader doesn't let them be set
    return found


def _seeded(sampler: Any, seed: int | None) -> Any:
    """A copy of a sampler, and of the one within, whose own generators are seeded."""
    if not isinstance(sampler, Sampler):
        return sampler
    found: Any = copy.copy(sampler)
    if isinstance(getattr(found, "generator", None), torch.Generator):
        found.generator = _generator(seed)
    if isinstance(getattr(found, "sampler", None), Sampler):
        found.sampler = _seeded(found.sampler, seed)
    return found


def _generator(seed: int | None) -> torch.Generator:
    found = torch.Generator()
    if seed is None:
        found.seed()
        return found
    return found.manual_seed(seed)
