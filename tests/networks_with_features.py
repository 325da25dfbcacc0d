"""Small networks whose features lie behind positions, or that couple what they concatenate."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.compaction.compact import compact_training

#: Characters, and positions of a text.
WORDS, LENGTH = 11, 5


class GroupedQueries(nn.Module):
    """A block of a language model: rotary positions, four queries for two keys, a gated layer (Touvron et al. 2023).

    by_hand: attention as products and a softmax, with keys repeated by a view.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int = 16, *, queries: int = 4, keys: int = 2, by_hand: bool = False) -> None:
        super().__init__()
        self.queries, self.keys, self.by_hand = queries, keys, by_hand
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v = nn.Linear(width, 4 * queries), nn.Linear(width, 4 * keys), nn.Linear(width, 4 * keys)
        self.out = nn.Linear(4 * queries, width)
        self.gate, self.up, self.down = nn.Linear(width, 12), nn.Linear(width, 12), nn.Linear(12, width)
        angles = torch.arange(float(LENGTH))[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        h = self.norm1(x)
        q, k, v = (
            layer(h).view(n, length, heads, 4).transpose(1, 2)
            for layer, heads in ((self.q, self.queries), (self.k, self.keys), (self.v, self.keys))
        )
        q, k = (each * self.cos + torch.cat([-each[..., 2:], each[..., :2]], -1) * self.sin for each in (q, k))
        if self.by_hand:
            size = (n, self.keys, self.queries // self.keys, length, 4)
            k, v = (each[:, :, None].expand(size).reshape(n, -1, length, 4) for each in (k, v))
            hidden = torch.full((length, length), -1e9, dtype=x.dtype).triu(1)
            mixed = torch.softmax(q @ k.transpose(-1, -2) / 2 + hidden, -1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, -1))
        h = self.norm2(x)
        out: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return out


class Language(nn.Module):
    """Inputs (n, length), numbers of words; outputs logits of the next one."""

    def __init__(self, *, by_hand: bool = False, tied: bool = False) -> None:
        super().__init__()
        self.words, self.block = nn.Embedding(WORDS, 16), GroupedQueries(by_hand=by_hand)
        self.norm, self.head = nn.RMSNorm(16), nn.Linear(16, WORDS, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.block(self.words(x))))
        return out


class Concatenating(nn.Module):
    """Two layers that read all before them (Huang et al. 2017), a depthwise one, and normalisation of groups."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.third, self.depthwise = nn.Conv2d(12, 4, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm, self.head = nn.GroupNorm(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.cat([x, torch.relu(self.second(x))], 1)
        x = torch.cat([x, self.third(x)], 1)
        out: Tensor = self.head(torch.relu(self.norm(self.depthwise(x))).mean((2, 3)))
        return out


class Attend(nn.Module):
    """One attention with a head size of its own, as `lthfunc.models.transformers.Attention` computes it."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.out = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, -1))
        return out


def noisy(state: lf.TrainState, seed: int = 0) -> lf.TrainState:
    """The state in float64, with noise on every parameter and buffer."""
    draw = torch.Generator().manual_seed(seed)

    def changed(leaf: Tensor, size: float) -> Tensor:
        if not leaf.is_floating_point():
            return leaf
        return leaf.double() + size * torch.rand(leaf.shape, generator=draw, dtype=torch.float64)

    params = {name: changed(leaf, 0.2) for name, leaf in state.params.items()}
    fixed = ("cos", "sin")
    buffers = {
        name: leaf.double() if name.endswith(fixed) else changed(leaf, 1.0) for name, leaf in state.buffers.items()
    }
    return state._replace(params=lf.apply_masks(params, state.masks), buffers=buffers)


def compacted(
    model: lf.Model, ticket: Any, shape: tuple[int, ...], *, training: bool = False, **settings: bool
) -> lf.Compacted:
    """What `lf.compact` makes, or for training, none of whose arguments changes."""
    given = ticket, model.training.state_dict(), model.evaluating.state_dict()
    before = copy.deepcopy(given)
    small = (compact_training if training else lf.compact)(model, ticket, shape, **settings)
    assert lf.same_bits(given, before)
    return small
