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

WIDTH, CLASSES = 12, 3


class Block(nn.Module):
    """A linear layer, and whatever a subclass does around it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)


class InPlace(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y += 0.1
        z = y.relu_() * 0.9
        z -= z.mean(1, keepdim=True)
        z.add_(x).clamp_(max=5)
        out: Tensor = z
        return out


class Constants(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y = torch.where(y > torch.tensor(0.0), y, torch.tensor(0.1) * y)
        return y + torch.full_like(y, 0.2) + torch.tensor([0.1, 0.2, 0.3]).repeat(WIDTH // 3)


class Masks(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        mask = ((y > 0) & (y < 1)) | ((y > 2) ^ (y < -1))
        mask &= torch.ones(WIDTH, dtype=torch.bool)
        mask |= ~(y > -3)
        out: Tensor = y.masked_fill(mask, 0.25).masked_fill_(y > 3, torch.finfo(torch.float32).tiny)
        return out


class Assigning(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc(x))
        z = torch.zeros(len(x), WIDTH)
        z[:, ::2] = y[:, ::2]
        z[:, 1] += y[:, 0]
        z[:, -2:] = x[:, :2]
        return z


class Views(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        halves = y.view(len(x), 2, -1)
        halves[:, 0].mul_(2)
        first = y[:, 2:7]
        first.relu_()
        out: Tensor = y + halves.flatten(1)
        return out


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = x + torch.relu(layer(x)) * 0.5**place
        return x


class Tied(Block):
    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Linear(WIDTH, WIDTH, bias=False)
        self.back.weight = self.fc.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.back(torch.tanh(self.fc(self.fc(x))))
        return out


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, -1)
        out: Tensor = value * torch.sigmoid(gate)
        return out


class Pieces(Block):
    def forward(self, x: Tensor) -> Tensor:
        parts = self.fc(x).split([4, 2, 6], 1)
        y = torch.cat([part.relu() for part in reversed(parts)], 1)
        return torch.stack([y, x, y.flip(1)], 2).mean(2).roll(1, 1)


class Einsum(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bi,oi->bo", x, self.fc.weight)
        return y + torch.eye(WIDTH)[3] + self.fc.bias * torch.ones(WIDTH, WIDTH).tril()[5]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = x.reshape(x.size(0), -1, 4)
        q, k, v = (part.unsqueeze(1) for part in self.qkv(y).chunk(3, -1))
        allowed = torch.ones(y.size(1), y.size(1), dtype=torch.bool).tril()
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed).squeeze(1)
        scores = (q @ k.mT).masked_fill(~allowed, float("-inf")).softmax(-1)
        found: Tensor = (y + self.out(seen + (scores @ v).squeeze(1))).flatten(1)
        return found


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = x.view(-1, WIDTH // 4, 4)
        found: Tensor = (y + self.attention(y, y, y, need_weights=False)[0]).flatten(1)
        return found


class Recurrent(Block):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = random.choice([nn.LSTM, nn.GRU])(3, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x.unflatten(1, (-1, 3)))
        out: Tensor = self.fc(y[:, -1])
        return out


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
