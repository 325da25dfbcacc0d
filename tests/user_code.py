"""Random modules the way users write them: changes in place, constants made in forward, masks, loops, tied weights.

A module is a few blocks in a row, each of which maps (batch, WIDTH) to (batch, WIDTH) example by example, and a head.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from user_blocks import (
    CLASSES,
    WIDTH,
    Assigning,
    Attention,
    Block,
    Constants,
    Einsum,
    Gated,
    InPlace,
    Looping,
    Masks,
    Packed,
    Pieces,
    Recurrent,
    Tied,
    Views,
)


class Cell(Block):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h, c = x.new_zeros(x.shape[0], WIDTH), torch.zeros(x.shape[0], WIDTH)
        for step in x.unflatten(1, (-1, 3)).unbind(1):
            h, c = self.cell(step, (h, c))
        out: Tensor = self.fc(h) + c
        return out


class Looked(Block):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        words = (x[:, :4].sigmoid() * 7).long()
        hot = F.one_hot(words[:, 0], 8).float() @ self.words.weight
        out: Tensor = self.fc(self.words(words).flatten(1)) + hot.repeat(1, 4)
        return out


class Buffered(Block):
    causal: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("causal", torch.ones(WIDTH, WIDTH).tril() / WIDTH, persistent=False)
        self.register_buffer("shift", torch.linspace(-1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x @ self.causal) + self.shift
        return out


class Moving(Block):
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(0.1 * y.mean(0))
        out: Tensor = y - self.mean
        return out


class NoGradient(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        with torch.no_grad():
            top = y.amax(1, keepdim=True)
        out: Tensor = y - top + y.detach() * 0.1
        return out


class ChangesInput(Block):
    def forward(self, x: Tensor) -> Tensor:
        x -= x.mean(1, keepdim=True)
        x[:, 0] = 1.0
        out: Tensor = self.fc(x)
        return out


class Wide(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        total = y.to(torch.float64).cumsum(1).to(x.dtype)
        where = torch.arange(WIDTH).expand(len(x), -1).flip(1)
        best = y.topk(3, 1).values.sum(1, keepdim=True)
        out: Tensor = y.gather(1, where) + 0.1 * total + torch.scalar_tensor(0.5) * best
        return out


class Normed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.batch, self.layer = nn.BatchNorm1d(WIDTH), nn.LayerNorm(WIDTH)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.act(self.batch(self.fc(x))) + x)
        return out


class Seen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1, groups=2)
        self.up, self.out = nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Linear(2 * 12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x.view(x.size(0), 1, 3, 4)), inplace=True)
        y = F.max_pool2d(y + self.grouped(y), 2, padding=1)
        y = self.up(y)[:, :, :3, :4]
        found: Tensor = self.out(y.contiguous().view(len(x), -1).relu_())
        return found


class Parametrised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = weight_norm(nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.fc(x))


class Frozen(Block):
    def __init__(self) -> None:
        super().__init__()
        self.old = nn.Linear(WIDTH, WIDTH).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.gelu(self.old(x)))
        return out


class OutOf(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        z = torch.empty_like(y)
        torch.maximum(y.detach(), torch.zeros(()), out=z)
        found: Tensor = y + z
        return found


class Pair(NamedTuple):
    logits: Tensor
    hidden: Tensor


BLOCKS: tuple[Callable[[], nn.Module], ...] = (
    InPlace, Constants, Masks, Assigning, Views, Looping, Tied, Gated, Pieces, Einsum, Attention, Packed, Recurrent,
    Cell, Looked, Buffered, Moving, NoGradient, ChangesInput, Wide, Normed, Seen, Parametrised, Frozen, OutOf,
)  # fmt: skip
#: Those that may come after others: autograd needs what they were given.
LATER = [kind for kind in BLOCKS if kind is not ChangesInput]
HEADS = ("tensor", "tensor", "dict", "tuple", "pair")


class Drawn(nn.Module):
    """Blocks in a row and a head."""

    def __init__(self, blocks: list[nn.Module], head: str) -> None:
        super().__init__()
        self.blocks, self.head, self.fc = nn.ModuleList(blocks), head, nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        logits = self.fc(x)
        if self.head == "dict":
            return {"logits": logits, "more": [x.mean(1), {"count": 3, "x": x}]}
        if self.head == "tuple":
            return logits, (x, None)
        return Pair(logits, x) if self.head == "pair" else logits


def drawn(seed: int) -> Drawn:
    """The module of a seed; every block is the first of some seed below their number."""
    random.seed(seed)
    torch.manual_seed(seed)
    kinds = [BLOCKS[seed % len(BLOCKS)], *random.choices(LATER, k=random.randint(0, 2))]
    return Drawn([kind() for kind in kinds], HEADS[(seed // 2) % len(HEADS)])
