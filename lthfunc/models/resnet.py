"""ResNets for small images."""

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
        logits: Tensor = self.fc(x)
        return logits
