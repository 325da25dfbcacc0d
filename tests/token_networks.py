"""Networks of tokens: what the sparse engine's tests of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class Tokens(nn.Module):
    """(n, length · ins) numbers as tokens, a function of them, and three classes for each token."""

    def __init__(self, function: Callable[[Tokens, Tensor], Tensor], ins: int, width: int, heads: int = 1) -> None:
        super().__init__()
        self.function, self.ins, self.heads = function, ins, heads
        self.up, self.out = nn.Linear(ins, width), nn.Linear(width, 3)
        self.norm, self.root, self.qkv = nn.LayerNorm(width), nn.RMSNorm(width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.function(self, self.up(x.unflatten(1, (-1, self.ins)))))
        return found

    def split(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, (n, heads, length, features) each."""
        return [each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1)]


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attended(operands: Sequence[Tensor], **settings: Any) -> Tensor:
    q, k, v = operands
    return F.scaled_dot_product_attention(q, k, v, **settings)
