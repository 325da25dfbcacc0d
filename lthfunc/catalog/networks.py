"""The networks that can be chosen by name: what they require, and how the paper trains them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lthfunc.errors import unknown
from lthfunc.registry import Entry, Registry

#: Options with which timm loads files, including pickled ones.
TIMM_LOADS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
#: How the names of checkpoints end that torch.save wrote.
PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar", ".pkl", ".pickle")


class Recipe(NamedTuple):
    """Default training settings, used where the user gives none."""

    optimizer: str
    lr: float
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0


# Adam's rates and the batch size of 60 are those of Frankle & Carbin 2019, fig. 2. The deeper networks use SGD with
# momentum at the low rate with which that paper finds tickets without warm-up (its sec. 4).
_LENET, _CONV = Recipe("adam", 1.2e-3, 60), Recipe("adam", 3e-4, 60)
_DEEP = Recipe("sgd", 0.01, 128, 0.9, 1e-4)


@dataclass(frozen=True)
class NetworkEntry(Entry):
    """min_side: the minimum height and width of an image. arguments: of its target.

    inputs: "images" (channels, height, width); "text" (length,), numbers of characters; or "numbers" of any shape.
    targets: "pixels" where it tells each pixel's class.
    """

    min_side: int = 1
    recipe: Recipe = _DEEP
    inputs: str = "images"
    targets: str = "classes"
    aliases: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)


def _conv(number: int, about: str, widths: tuple[int, ...], recipe: Recipe) -> NetworkEntry:
    return NetworkEntry(
        ".models.conv:ConvNet", f"Conv-{number}: {about}, fc 256-256", "Frankle & Carbin 2019",
        min_side=2 ** len(widths), recipe=recipe, aliases=(f"conv-{number}",), arguments={"widths": widths},
    )  # fmt: skip


def _deep(
    target: str, name: str, about: str, source: str, depths: tuple[int, ...], min_side: int
) -> dict[str, NetworkEntry]:
    """Networks that differ in depth."""
    return {
        f"{name.lower()}{depth}": NetworkEntry(
            target, f"{name}-{depth}{about}", source, min_side=min_side, aliases=(f"{name.lower()}-{depth}",),
            arguments={"depth": depth},
        )
        for depth in depths
    }  # fmt: skip


_HE, _WIDE = "He et al. 2016", "Zagoruyko & Komodakis 2016"

#: (shape, classes) -> an nn.Module, by the names of its parameters; a user's may have others as well.
NETWORKS = Registry("models", "--arch", {
    "lenet300": NetworkEntry(
        ".models.lenet:LeNet300", "LeNet-300-100, fully connected", "LeCun et al. 1998", recipe=_LENET,
        inputs="numbers", aliases=("fc1", "lenet-300-100"),
    ),
    "lenet5": NetworkEntry(
        ".models.lenet:LeNet5", "LeNet-5: conv 6-16, fc 120-84", "LeCun et al. 1998", min_side=12, recipe=_LENET,
        aliases=("lenet-5",),
    ),
    "lenet5-wide": NetworkEntry(".models.lenet:WideLeNet5", "conv 64-64, fc 256-256", min_side=2, recipe=_LENET),
    "conv2": _conv(2, "conv 64", (64,), Recipe("adam", 2e-4, 60)),
    "conv4": _conv(4, "conv 64-128", (64, 128), _CONV),
    "conv6": _conv(6, "conv 64-128-256", (64, 128, 256), _CONV),
    "alexnet": NetworkEntry(
        ".models.alex:AlexNet", "AlexNet for small images, fc 4096-4096", "Krizhevsky et al. 2012", min_side=15,
        recipe=_CONV,
    ),
    **_deep(
        ".models.vgg:VGG", "VGG", " with BatchNorm, one linear layer", "Simonyan & Zisserman 2015", (11, 13, 16, 19), 16
    ),
    **_deep(".models.resnet:ResNet", "ResNet", ", He's for CIFAR", _HE, (20, 32, 56), 8),
    **_deep(".models.small_images:small_image_resnet", "ResNet", ", stem for small images", _HE, (18, 34, 50), 8),
    "wrn-22-2": NetworkEntry(
        ".models.resnet:WideResNet", "Wide ResNet, depth 22, width 2", _WIDE, min_side=8,
        arguments={"depth": 22, "width": 2},
    ),
    "wrn-28-10": NetworkEntry(
        ".models.resnet:WideResNet", "Wide ResNet, depth 28, width 10", _WIDE, min_side=8,
        arguments={"depth": 28, "width": 10},
    ),
    "densenet121": NetworkEntry(
        ".models.small_images:small_image_densenet121", "DenseNet-121, stem for small images", "Huang et al. 2017",
        min_side=8, recipe=_DEEP._replace(batch_size=64), aliases=("densenet-121",),
    ),
    "vit-tiny": NetworkEntry(
        ".models.transformers:ViT", "ViT of DeiT-Ti's size, patches of 4", "Touvron et al. 2021", min_side=4,
        recipe=Recipe("adamw", 5e-4, 128, 0.0, 0.05),
    ),
    "char-transformer": NetworkEntry(
        ".models.transformers:CharTransformer", "which character comes next: 4 layers, width 128",
        recipe=Recipe("adamw", 1e-3, 32, 0.0, 0.01), inputs="text",
    ),
    "lstm": NetworkEntry(
        ".models.recurrent:CharLSTM", "which character comes next: 2 LSTM layers of 256", "Zaremba et al. 2014",
        recipe=Recipe("adam", 2e-3, 32), inputs="text",
    ),
    "unet": NetworkEntry(
        ".models.encoder_decoder:UNet", "U-Net, a class for each pixel", "Ronneberger et al. 2015", min_side=8,
        recipe=Recipe("adam", 1e-3, 16), targets="pixels",
    ),
})  # fmt: skip

#: Collections of networks, by prefix: the function that makes a network from the rest of the name.
ZOOS = Registry("model zoos", "--arch", {
    "torchvision:NAME": Entry(
        ".models.zoos:of_torchvision", "torchvision's", pattern=r"torchvision:(?P<name>.*)",
        example="torchvision:",
    ),
    "timm:NAME": Entry(".models.zoos:of_timm", "timm's", pattern=r"timm:(?P<name>.*)", example="timm:"),
})  # fmt: skip

ALIASES: dict[str, str] = {alias: name for name, entry in NETWORKS.items() for alias in entry.aliases}


def canonical(name: str, argument: str = NETWORKS.option) -> str:
    """The catalogue's name for a name or alias; names of collections and users stay.

    Raises UserError, on `argument`, if unknown.
    """
    if ":" in name:
        return name
    found = ALIASES.get(name.lower(), name.lower())
    if found in NETWORKS:
        return found
    if not NETWORKS.has(name):
        short = [alias for alias in ALIASES if "-" not in alias]
        raise unknown(argument, name, [*NETWORKS, *short, *sorted(NETWORKS.installed())])
    return name
