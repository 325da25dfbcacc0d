"""A vision transformer for small images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lthfunc.errors import UserError
from lthfunc.models.attention import Block


class ViT(nn.Module):
    """Dosovitskiy et al. 2021 at DeiT-Ti's size (Touvron et al. 2021, table 1), with patches for small images.

    Raises UserError for images that patches don't tile, and a width that heads don't divide.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        *,
        patch: int = 4,
        layers: int = 12,
        heads: int = 3,
        width: int = 192,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, side = shape
        if height % patch or side % patch:
            raise UserError(
                f"--arch: 'vit-tiny' works on images that patches of {patch}×{patch} tile (--arch-option patch=N), "
                f"these are {height}×{side}"
            )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1 + (height // patch) * (side // patch), width))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, causal=False) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], dim=1) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits
