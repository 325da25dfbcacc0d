"""Networks that together have every kind of instruction, and the shape of their images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (2, 8, 8)


class Plain(nn.Sequential):
    """Layers, maxima, batch normalisation, and an optimiser."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3, stride=2, padding=1),
            nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Dropout(0.2), nn.Linear(40, 3),
        )  # fmt: skip


class Mixed(nn.Module):
    """What the other one lacks: slices, padding, additions, products, gates, largest numbers, interpolation, group
    normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3), nn.Linear(16, 3)
        self.norm, self.group = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
        self.gain = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = F.gelu(self.group(F.pad(x[:, :, 1:7, 1:7], (1, 1, 1, 1))))
        x = F.max_pool2d(self.norm(x) + x, 3, 2, 1)
        x = x * torch.sigmoid(F.adaptive_avg_pool2d(x, 1)) - self.gain * F.silu(x)
        x = x + F.silu(torch.maximum(x, x.amax(1, True).abs() / 2))
        x = F.interpolate(F.pad(self.second(x), (1, 1, 1, 1), value=0.5), size=(3, 5), mode="bilinear")
        x = F.avg_pool2d(F.interpolate(x, scale_factor=2), (3, 5))
        scores: Tensor = self.head(x.flatten(1))
        return scores.log_softmax(1)


class Held(nn.Module):
    """Values and gradients that may be held in 16 bits, also of rows of several blocks, and one that may not; some of
    them in bands of rows or, without biases, in rows that roll."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(ins, 24, 3, padding=1, bias=bias) for ins in (2, 24, 24))
        self.norms, self.head = nn.ModuleList(nn.BatchNorm2d(24) for _ in range(3)), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (nn.Sequential(*both) for both in zip(self.convs, self.norms, strict=True))
        x = torch.relu(a(x))
        scores: Tensor = self.head(torch.relu(c(torch.relu(b(x))) + x).mean((2, 3)))
        return scores


class Attended(nn.Module):
    """What reads tokens: an embedding, attention, normalisation of each token, recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(9, 12), nn.Linear(12, 36), nn.Linear(12, 3)
        self.norm, self.root, self.again = nn.LayerNorm(12), nn.RMSNorm(12), nn.Linear(12, 12)
        self.lstm, self.gru = nn.LSTM(12, 6, batch_first=True, bidirectional=True), nn.GRU(12, 12, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(self.norm(self.gru(self.lstm(self.embed(x))[0])[0])))
        q, k, v = self.qkv(x).view(len(x), -1, 3, 2, 6).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention((q @ k.mT).softmax(-1) @ v, k, v).transpose(1, 2).flatten(2)
        scores: Tensor = self.head(self.root(x)[:, -1])
        return scores
