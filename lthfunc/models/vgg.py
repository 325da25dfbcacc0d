"""VGGs for small images."""

from __future__ import annotations

from torch import Tensor, nn

#: Convolutions per stage; the stages' widths are 64, 128, 256, 512, 512, with 2×2 pooling between them.
_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """VGG as the lottery-ticket papers train it on CIFAR (Frankle et al. 2020, app. A): BatchNorm, one linear layer.

    The convolutions are those of Simonyan & Zisserman 2015, table 1, followed by global average pooling.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, depth: int, width: float = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage, (count, wide) in enumerate(zip(_STAGES[depth], (64, 128, 256, 512, 512), strict=True)):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                out = round(wide * width)
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))
