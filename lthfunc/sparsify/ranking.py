"""Exact ranks, with ties broken by position."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

#: Integers as wide as the floats.
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def ranks(scores: Tensor, alive: Tensor) -> Tensor:
    """The rank of each entry, 0 = the best; int64, the shape of `scores`.

    Live entries come before dead ones, higher scores before lower ones, and among equals the lower flat index
    (row-major) first. No value stands for "dead", so every finite score is safe.
    """
    best_first = torch.argsort(_falling(scores.flatten()), stable=True)
    return _ranks(best_first[None], alive.flatten()[None]).view(scores.shape)


def best(scores: Tensor, alive: Tensor, count: Tensor | int) -> Tensor:
    """The `count` best of the live entries by `ranks`, all of them where there are fewer: bool, the shape of `scores`.

    On a CPU the last one chosen is found without sorting, in time that is linear in the number of live entries.
    """
    if not all(_is_in_memory(each) for each in (scores, alive, count) if isinstance(each, Tensor)):
        return (ranks(scores, alive) < count) & alive
    living, wanted = alive.flatten(), int(count)
    keys = _falling(scores.flatten().masked_select(living))
    if wanted >= len(keys):
        return alive.clone()
    if wanted <= 0:
        return torch.zeros_like(alive)
    last = np.partition(keys.numpy(), wanted - 1)[wanted - 1]
    chosen = keys <= last
    if int(chosen.sum()) > wanted:  # of those equal to the last, the first ones
        ties = keys == last
        sure = chosen & ~ties
        chosen = sure | (ties & (ties.cumsum(0) <= wanted - int(sure.sum())))
    return torch.zeros_like(living).masked_scatter_(living, chosen).view(alive.shape)


def _is_in_memory(leaf: Tensor) -> bool:
    """Whether a tensor's numbers can be looked at at once: not on a GPU, under vmap or in a trace."""
    return type(leaf) is Tensor and leaf.is_cpu and not torch._C._functorch.is_functorch_wrapped_tensor(leaf)


def ranks_in_rows(scores: Tensor, alive: Tensor) -> Tensor:
    """`ranks`, within each row of a matrix."""
    return _ranks(torch.argsort(_falling(scores), dim=1, stable=True), alive)


def _ranks(best_first: Tensor, alive: Tensor) -> Tensor:
    live = alive.gather(1, best_first)
    before = torch.where(live, live.cumsum(1), live.sum(1, keepdim=True) + (~live).cumsum(1)) - 1
    return torch.empty_like(best_first).scatter(1, best_first, before)


def _falling(scores: Tensor) -> Tensor:
    """Integers that rise as the scores fall: a vector of integers is sorted ten times as fast as one of floats."""
    if not scores.is_floating_point():
        return ~scores
    try:
        return ~rising_integers(scores if scores.dtype in _INTEGERS else scores.float())
    except RuntimeError:  # torch 2.11 cannot do that under vmap; floats sort to the same order, more slowly
        return -scores


def rising_integers(scores: Tensor) -> Tensor:
    """Integers, as wide as these float32 or float64 scores, in the order of the scores.

    The bits of positive floats, read as integers, rise with them, and those of negative ones fall.
    """
    bits = (scores + 0.0).contiguous().view(_INTEGERS[scores.dtype])  # -0 becomes 0
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
