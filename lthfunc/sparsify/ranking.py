"""Exact ranks with a deterministic order among ties."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(scores: Tensor, alive: Tensor) -> Tensor:
    """Rank of each entry, 0 = the best; int64, the shape of `scores`.

    Live entries come before dead ones, higher scores before lower ones, and among equals the lower flat
    index (row-major) first. Two stable sorts, so any finite score is safe, and no value stands for "dead".
    """
    return ranks_in_rows(scores.flatten()[None], alive.flatten()[None]).view(scores.shape)


def ranks_in_rows(scores: Tensor, alive: Tensor) -> Tensor:
    """`ranks`, within each row of a matrix."""
    by_score = torch.argsort(scores, dim=1, descending=True, stable=True)
    dead = (~alive).gather(1, by_score).to(torch.uint8)
    order = by_score.gather(1, torch.argsort(dead, dim=1, stable=True))
    positions = torch.arange(scores.shape[1], device=scores.device).expand(order.shape)
    return torch.empty_like(order).scatter(1, order, positions)
