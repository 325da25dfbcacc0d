"""AlexNet for small images."""

from __future__ import annotations

from torch import Tensor, nn


class AlexNet(nn.Module):
    """The layers of Krizhevsky 2014 with 3×3 kernels, a first stride of 2, and 4096-4096 linear units with dropout."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, dropout: float = 0.5) -> None:
        super().__init__()
        channels, height, width = shape
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
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
