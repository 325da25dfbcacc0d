"""The LeNets (LeCun et al. 1998), with ReLU and max pooling."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet300(nn.Module):
    """Fully connected: inputs - 300 - 100 - classes. 266,200 weights on 28×28 images (Frankle & Carbin, fig. 2)."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(math.prod(shape), 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class LeNet5(nn.Module):
    """6 and 16 convolutions 5×5, each with 2×2 pooling, then 120 - 84 - classes.

    The first convolution pads by 2, which gives a 28×28 image the 32×32 field of LeCun et al. 1998, sec. II.B:
    61,470 weights.
    """

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        after = [(side // 2 - 4) // 2 for side in (height, width)]
        self.fc1 = nn.Linear(16 * after[0] * after[1], 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


class WideLeNet5(nn.Module):
    """A wide LeNet-5: two 3×3 convolutions of 64 channels, pooling, then 256 - 256 - classes."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.fc1 = nn.Linear(64 * (height // 2) * (width // 2), 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
