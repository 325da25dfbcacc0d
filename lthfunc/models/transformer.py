"""A small transformer that predicts the next character."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lthfunc.models.attention import Block


class CharTransformer(nn.Module):
    """Inputs (n, length), characters' numbers; outputs (n, length, vocabulary), logits of the next character.

    tied: whether the output layer shares the embedding's weight. Raises UserError for a width that heads don't divide.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        layers: int = 4,
        heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        (length,) = shape
        self.characters = nn.Embedding(classes, width)
        self.places = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, causal=True) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes, bias=False)
        if tied:
            self.head.weight = self.characters.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.characters(x) + self.places[: x.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits
