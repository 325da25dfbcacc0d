"""Conv-2, Conv-4 and Conv-6: the scaled-down VGGs of Frankle & Carbin 2019, fig. 2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ConvNet(nn.Module):
    """Pairs of 3×3 convolutions of the given widths, each pair with 2×2 pooling, then 256 - 256 - classes."""

    def __init__(self, shape: tuple[int, ...], classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for wide in widths:
            for into in (channels, wide):
                layers += [nn.Conv2d(into, wide, 3, padding=1), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = wide
        self.features = nn.Sequential(*layers)
        shrink = 2 ** len(widths)
        self.fc1 = nn.Linear(channels * (height // shrink) * (width // shrink), 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).flatten(1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)
