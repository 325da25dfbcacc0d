"""Exact ranks with a deterministic order among ties."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(scores: Tensor, alive: Tensor) -> Tensor:
    """Rank of each entry, 0 = the best; int64, the shape of `scores`.

    Live entries come before dead ones, higher scores before lower ones, and among equals the lower flat
    index (row-major) first. Two stable sorts, so any finite score is safe, and no value stands for "dead".
    """
    flat = scores.flatten()
    by_score = torch.argsort(flat, descending=True, stable=True)
    dead = (~alive.flatten())[by_score].to(torch.uint8)
    order = by_score[torch.argsort(dead, stable=True)]
    positions = torch.arange(flat.numel(), device=flat.device)
    return torch.empty_like(positions).scatter(0, order, positions).view(scores.shape)
