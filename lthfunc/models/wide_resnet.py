"""Wide ResNets (Zagoruyko & Komodakis 2016, table 1): normalisation and ReLU before each convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(into)
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.shortcut = None if into == out else nn.Conv2d(into, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        ready = F.relu(self.bn1(x))
        y = self.conv1(ready)
        y = self.conv2(self.dropout(F.relu(self.bn2(y))))
        out: Tensor = y + (x if self.shortcut is None else self.shortcut(ready))
        return out


class WideResNet(nn.Module):
    """WRN-depth-width: (depth - 4) / 6 blocks in each of three groups of 16, 32 and 64 times `width` channels."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, depth: int, width: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        blocks, into = [], 16
        for group, base in enumerate((16, 32, 64)):
            out = round(base * width)
            for number in range((depth - 4) // 6):
                blocks.append(_Block(into, out, 2 if group and not number else 1, dropout))
                into = out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(into)
        self.fc = nn.Linear(into, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
