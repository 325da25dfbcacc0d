"""Transformers: one that predicts the next character, and one for small images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lthfunc.errors import UserError, invalid


class Attention(nn.Module):
    """Self-attention (Vaswani et al. 2017, sec. 3.2); queries, keys and values in one matrix.

    causal: whether each position reads only itself and those before it. Raises UserError for a width that heads don't
    divide.
    """

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise invalid("arch_option", f"width={width}", f"a multiple of the {heads} heads")
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, length, width))


class Block(nn.Module):
    """Pre-norm attention and two linear layers, each with a residual connection (Radford et al. 2019)."""

    def __init__(self, width: int, heads: int, dropout: float, *, causal: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, causal=causal)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


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
        return self.head(self.norm(self.blocks(x)))


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
                f"arch: 'vit-tiny' works on images that patches of {patch}×{patch} tile (option patch=N), "
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
        return self.head(self.norm(self.blocks(x))[:, 0])
