"""The networks that training is measured on, with data of their real sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

import lthfunc as lf

_MNIST, _CIFAR, _TEXT, _CHARACTERS = (1, 28, 28), (3, 32, 32), (64,), 65


@dataclass(frozen=True)
class Case:
    """A network to measure. build: makes it. layers: what it is made of, for peers that build it themselves; () where
    none can.

    kind: of its data: "images" and their classes, images and the classes of their "pixels", or "text".
    """

    name: str
    build: Callable[[], lf.Model]
    shape: tuple[int, ...]
    batch: int
    layers: tuple[str, ...] = ()
    kind: str = "images"

    @cached_property
    def model(self) -> lf.Model:
        """The network, made when it is measured: the largest take seconds."""
        return self.build()

    @property
    def learns(self) -> dict[str, Any]:
        """The loss and the metric of its targets."""
        return {"loss": lf.pixel_cross_entropy, "metric": lf.pixel_accuracy} if self.kind == "pixels" else {}


def cases() -> dict[str, Case]:
    """All networks, by name."""
    built = [
        Case("lenet300", lambda: lf.models.lenet300(_MNIST), _MNIST, 60, ("fc 300", "relu", "fc 100", "relu", "fc 10")),
        Case(
            "lenet5",
            lambda: lf.models.lenet5(_MNIST),
            _MNIST,
            60,
            _LENET5,
        ),
        Case("lenet5-wide", lambda: lf.models.lenet5_wide(_MNIST), _MNIST, 60, _WIDE),
        Case("conv4", lambda: lf.models.conv4(_CIFAR), _CIFAR, 60, _CONV4),
        Case("resnet20", lambda: lf.models.resnet20(_CIFAR), _CIFAR, 128),
        Case("resnet18", lambda: lf.models.resnet18(_CIFAR), _CIFAR, 128),
        Case("vgg16", lambda: lf.models.vgg16(_CIFAR), _CIFAR, 128),
        Case("vit-tiny", lambda: lf.models.vit_tiny(_CIFAR), _CIFAR, 128),
        Case("unet", lambda: lf.models.unet(_CIFAR), _CIFAR, 32, kind="pixels"),
        Case("char-transformer", lambda: lf.models.char_transformer(_TEXT, _CHARACTERS), _TEXT, 32, kind="text"),
        Case(
            "gpt", lambda: lf.models.char_transformer(_TEXT, _CHARACTERS, width=1024, heads=32), _TEXT, 16, kind="text"
        ),
        Case("lstm", lambda: lf.models.lstm(_TEXT, _CHARACTERS), _TEXT, 32, kind="text"),
    ]
    return {case.name: case for case in built}


def layer_cases() -> dict[str, Case]:
    """Single layers as networks: linear ones by inputs and outputs, 3×3 convolutions by channels."""
    found = {}
    for size in (1024, 4096):
        layer = nn.Sequential(nn.Linear(size, size))
        name = f"linear{size}"
        found[name] = Case(name, partial(lf.from_module, layer, name=name), (size,), 64)
    for channels, side in ((64, 32), (256, 8)):
        layer = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Flatten())
        name = f"conv{channels}"
        found[name] = Case(name, partial(lf.from_module, layer, name=name), (channels, side, side), 64)
    return found


_HEAD = ("fc 256", "relu", "fc 256", "relu", "fc 10")
_LENET5 = (
    "conv5 6 pad2", "relu", "pool", "conv5 16 pad0", "relu", "pool", "fc 120", "relu", "fc 84", "relu", "fc 10",
)  # fmt: skip
_WIDE = ("conv3 64 pad1", "relu", "conv3 64 pad1", "relu", "pool", *_HEAD)
_CONV4 = (
    "conv3 64 pad1", "relu", "conv3 64 pad1", "relu", "pool",
    "conv3 128 pad1", "relu", "conv3 128 pad1", "relu", "pool", *_HEAD,
)  # fmt: skip


def images(case: Case, device: str, size: int = 45_000) -> lf.Dataset:
    """Random uint8 images, or texts, as many as a training set has: speed depends only on sizes."""
    draw = torch.Generator().manual_seed(0)
    scale, size = None, size if case.kind == "images" else min(size, 5_000)
    if case.kind == "text":
        text = torch.randint(0, _CHARACTERS, (size, case.shape[0] + 1), generator=draw)
        x, y = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    else:
        x = torch.randint(0, 256, (size, *case.shape), generator=draw, dtype=torch.uint8)
        y = torch.randint(0, 10, (size, *(case.shape[1:] if case.kind == "pixels" else ())), generator=draw)
        channels = case.shape[0]
        scale = lf.Scale(255, (0.5,) * channels, (0.25,) * channels)
    data = lf.data.from_tensors("images", (x, y), (x[:1000], y[:1000]), val=1000, scale=scale)
    from lthfunc.trees.ops import data_to_device

    return data_to_device(data, device)
