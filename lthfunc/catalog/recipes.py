"""Settings of papers by name: what `--recipe` fills in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lthfunc.registry import Entry, Registry


@dataclass(frozen=True)
class RecipeEntry(Entry):
    """settings: fields of Config. A recipe has no function; a user's own is one that returns them."""

    settings: Mapping[str, Any] = field(default_factory=dict)


_LTH = "Frankle & Carbin 2019"
_REWINDING = "Frankle et al. 2020"
_CIFAR_SGD: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 128}

RECIPES = Registry("recipes", "--recipe", {
    "lth-lenet": RecipeEntry(
        "", "LeNet-300-100 on MNIST, 20 % a layer and round, 10 % of the output layer", f"{_LTH}, fig. 2", settings={
            "arch": "lenet300", "dataset": "mnist", "optimizer": "adam", "lr": 1.2e-3, "batch_size": 60,
            "steps": 50_000, "rounds": 20, "allocate": "layerwise", "rate": 0.2, "layer_rate": {"fc3*": 0.1},
        },
    ),
    "lth-conv": RecipeEntry(
        "", "Conv-4 on CIFAR-10, 10 % of convolutions and 20 % of linear layers a round", f"{_LTH}, fig. 2", settings={
            "arch": "conv4", "dataset": "cifar10", "optimizer": "adam", "lr": 3e-4, "batch_size": 60, "steps": 25_000,
            "rounds": 20, "allocate": "layerwise", "rate": 0.2, "layer_rate": {"features*": 0.1, "fc3*": 0.1},
            "augment": "none",
        },
    ),
    "lth-resnet18": RecipeEntry(
        "", "the CIFAR ResNet at the low rate, 20 % over all layers a round", f"{_LTH}, sec. 4", settings={
            **_CIFAR_SGD, "arch": "resnet20", "dataset": "cifar10", "lr": 0.01, "steps": 30_000, "schedule": "step",
            "milestone": [20_000, 25_000], "rounds": 20, "rate": 0.2, "augment": "flip-crop",
        },
    ),
    "lth-vgg19": RecipeEntry(
        "", "VGG-19 at the high rate with warm-up, 20 % over all layers a round", f"{_LTH}, sec. 4", settings={
            **_CIFAR_SGD, "arch": "vgg19", "dataset": "cifar10", "batch_size": 64, "lr": 0.1, "warmup": 10_000,
            "steps": 112_000, "schedule": "step", "milestone": [56_000, 84_000], "rounds": 20, "rate": 0.2,
            "augment": "flip-crop",
        },
    ),
    "rewind-resnet20": RecipeEntry(
        "", "ResNet-20 on CIFAR-10 with late rewinding", f"{_REWINDING}, table 1", settings={
            **_CIFAR_SGD, "arch": "resnet20", "dataset": "cifar10", "lr": 0.03, "warmup": 30_000, "steps": 63_000,
            "schedule": "step", "milestone": [31_000, 47_000], "rounds": 20, "rate": 0.2, "rewind": "step:2000",
            "augment": "flip-crop",
        },
    ),
    "rewind-vgg16": RecipeEntry(
        "", "VGG-16 on CIFAR-10 with late rewinding", f"{_REWINDING}, table 1", settings={
            **_CIFAR_SGD, "arch": "vgg16", "dataset": "cifar10", "lr": 0.1, "steps": 63_000, "schedule": "step",
            "milestone": [31_000, 47_000], "rounds": 20, "rate": 0.2, "rewind": "step:2000", "augment": "flip-crop",
        },
    ),
    "wide-resnet": RecipeEntry(
        "", "WRN-28-10, Nesterov; rates drop to a tenth (theirs: a fifth)",
        "Zagoruyko & Komodakis 2016, sec. 3", settings={
            "arch": "wrn-28-10", "dataset": "cifar10", "optimizer": "sgd", "momentum": 0.9, "nesterov": True,
            "weight_decay": 5e-4, "batch_size": 128, "lr": 0.1, "epochs": 200, "schedule": "step",
            "augment": "flip-crop",
        },
    ),
    "fast-cifar": RecipeEntry(
        "", "large batches, Nesterov, a triangle of rates, smoothed labels, few epochs",
        "after Jordan 2024 (airbench)", settings={
            "arch": "conv6", "dataset": "cifar10", "optimizer": "sgd", "momentum": 0.85, "nesterov": True,
            "weight_decay": 1.5e-3, "batch_size": 500, "lr": 0.05, "epochs": 10, "schedule": "triangular",
            "label_smoothing": 0.2, "augment": "flip-crop",
        },
    ),
    "transformer": RecipeEntry(
        "", "AdamW, warm-up, half a cosine, for character-level transformers", settings={
            "arch": "char-transformer", "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "batch_size": 32,
            "schedule": "cosine", "warmup": 100,
        },
    ),
})  # fmt: skip
