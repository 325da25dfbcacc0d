"""ResNets and wide ResNets for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3×3 convolutions and an identity shortcut without parameters ("option A")."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.extra = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.extra:  # new channels start as zeros
            shortcut = F.pad(shortcut, (0, 0, 0, 0, 0, self.extra))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """The CIFAR ResNets of He et al. 2016, sec. 4.2: (depth - 2) / 6 blocks in each of three groups.

    Their widths are 16, 32 and 64 times `width`. ResNet-20 has 268,336 weights on CIFAR-10.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, depth: int, width: float = 1) -> None:
        super().__init__()
        first, *later = (round(base * width) for base in (16, 32, 64))
        self.conv1 = nn.Conv2d(shape[0], first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        blocks, into = [], first
        for group, out in enumerate((first, *later)):
            for number in range((depth - 2) // 6):
                blocks.append(_Block(into, out, stride=2 if group and not number else 1))
                into = out
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(into, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x).mean((2, 3))
        return self.fc(x)


class _WideBlock(nn.Module):
    """Two 3×3 convolutions, with normalisation and ReLU before each."""

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
        return y + (x if self.shortcut is None else self.shortcut(ready))


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko & Komodakis 2016, table 1): (depth - 4) / 6 blocks in each of three groups.

    Their widths are 16, 32 and 64 times `width`.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, depth: int, width: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        blocks, into = [], 16
        for group, base in enumerate((16, 32, 64)):
            out = round(base * width)
            for number in range((depth - 4) // 6):
                blocks.append(_WideBlock(into, out, 2 if group and not number else 1, dropout))
                into = out
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(into)
        self.fc = nn.Linear(into, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.blocks(self.conv1(x))))
        return self.fc(x.mean((2, 3)))
