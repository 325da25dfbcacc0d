"""torchvision's networks with a first layer for small images: 3×3, stride 1, and no pooling after it."""

from __future__ import annotations

from torch import nn


def small_image_resnet(shape: tuple[int, ...], classes: int, *, depth: int) -> nn.Module:
    """ResNet-18, -34 or -50 (He et al. 2016, table 1)."""
    import torchvision  # takes a second

    module: nn.Module = getattr(torchvision.models, f"resnet{depth}")(num_classes=classes)
    module.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    module.maxpool = nn.Identity()
    return module


def small_image_densenet121(shape: tuple[int, ...], classes: int, *, dropout: float = 0.0) -> nn.Module:
    """DenseNet-121 (Huang et al. 2017, table 1)."""
    import torchvision

    module: nn.Module = torchvision.models.densenet121(num_classes=classes, drop_rate=dropout)
    features = module.get_submodule("features")
    features.conv0 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
    features.pool0 = nn.Identity()
    return module
