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


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. 2016, sec. 4.2, n = 3: widths 16, 32, 64. 268,336 weights on CIFAR-10."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, into = [], 16
        for width in (16, 32, 64):
            for number in range(3):
                blocks.append(_Block(into, width, stride=2 if number == 0 and width > 16 else 1))
                into = width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x).mean((2, 3))
        logits: Tensor = self.fc(x)
        return logits


def small_image_resnet18(shape: tuple[int, ...], classes: int) -> nn.Module:
    """torchvision's ResNet-18 (He et al. 2016, table 1) with a 3×3 stem of stride 1 and no first pooling."""
    import torchvision  # takes a second

    module: nn.Module = torchvision.models.resnet18(num_classes=classes)
    module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return module
