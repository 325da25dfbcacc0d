"""Blocks of modules the way users write them."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
