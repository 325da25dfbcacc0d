"""AlexNet for small images."""

from __future__ import annotations

from torch import Tensor, nn


class AlexNet(nn.Module):
    """The layers of Krizhevsky 2014 with 3×3 kernels, a first stride of 2, and 4096-4096 linear units with dropout."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for out, stride, pooled in ((64, 2, True), (192, 1, True), (384, 1, False), (256, 1, False), (256, 1, True)):
            layers += [nn.Conv2d(channels, out, 3, stride, padding=1), nn.ReLU()]
            if pooled:
                layers.append(nn.MaxPool2d(2))
            channels = out
        self.features = nn.Sequential(*layers)
        left = [(side + 1) // 2 // 8 for side in (height, width)]
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * left[0] * left[1], 4096),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
