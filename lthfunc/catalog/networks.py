"""What is known of each architecture before torch is imported: names, needs, and how the paper trains it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import NamedTuple

from lthfunc.errors import unknown

#: Entry points by which installed packages add networks.
ENTRY_POINTS = "lthfunc.models"
#: Options of timm's by which it loads files, pickled ones too.
TIMM_LOADS = ("checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


class Recipe(NamedTuple):
    """Default training settings, used where the user gives none."""

    optimizer: str
    lr: float
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0


class Arch(NamedTuple):
    """An architecture. min_side: the least height and width of an image that it can work on.

    takes: "images" (channels, height, width); "text" (length,), numbers of characters; or "numbers" of any shape.
    """

    name: str
    about: str
    min_side: int
    recipe: Recipe
    aliases: tuple[str, ...] = ()
    takes: str = "images"


# Adam's rates and the batch size of 60 are those of Frankle & Carbin 2019, fig. 2. The deeper networks use SGD with
# momentum at the low rate with which that paper finds tickets without warm-up (its sec. 4).
_LENET = Recipe("adam", 1.2e-3, 60)
_DEEP = Recipe("sgd", 0.01, 128, 0.9, 1e-4)

_ALL = (
    Arch("lenet300", "LeNet-300-100, fully connected", 1, _LENET, ("fc1", "lenet-300-100"), "numbers"),
    Arch("lenet5", "LeNet-5: conv 6-16, fc 120-84", 12, _LENET, ("lenet-5",)),
    Arch("lenet5-wide", "conv 64-64, fc 256-256", 2, _LENET),
    Arch("conv2", "Conv-2: conv 64, fc 256-256", 2, Recipe("adam", 2e-4, 60), ("conv-2",)),
    Arch("conv4", "Conv-4: conv 64-128, fc 256-256", 4, Recipe("adam", 3e-4, 60), ("conv-4",)),
    Arch("conv6", "Conv-6: conv 64-128-256, fc 256-256", 8, Recipe("adam", 3e-4, 60), ("conv-6",)),
    Arch("alexnet", "AlexNet for small images, fc 4096-4096", 15, Recipe("adam", 3e-4, 60)),
    Arch("vgg11", "VGG-11 with BatchNorm, one linear layer", 16, _DEEP, ("vgg-11",)),
    Arch("vgg13", "VGG-13 with BatchNorm, one linear layer", 16, _DEEP, ("vgg-13",)),
    Arch("vgg16", "VGG-16 with BatchNorm, one linear layer", 16, _DEEP, ("vgg-16",)),
    Arch("vgg19", "VGG-19 with BatchNorm, one linear layer", 16, _DEEP, ("vgg-19",)),
    Arch("resnet20", "ResNet-20, He's for CIFAR", 8, _DEEP, ("resnet-20",)),
    Arch("resnet32", "ResNet-32, He's for CIFAR", 8, _DEEP, ("resnet-32",)),
    Arch("resnet56", "ResNet-56, He's for CIFAR", 8, _DEEP, ("resnet-56",)),
    Arch("resnet18", "ResNet-18, stem for small images", 8, _DEEP, ("resnet-18",)),
    Arch("resnet34", "ResNet-34, stem for small images", 8, _DEEP, ("resnet-34",)),
    Arch("resnet50", "ResNet-50, stem for small images", 8, _DEEP, ("resnet-50",)),
    Arch("wrn-22-2", "Wide ResNet, depth 22, width 2", 8, _DEEP),
    Arch("wrn-28-10", "Wide ResNet, depth 28, width 10", 8, _DEEP),
    Arch("densenet121", "DenseNet-121, stem for small images", 8, _DEEP._replace(batch_size=64), ("densenet-121",)),
    Arch("vit-tiny", "ViT of DeiT-Ti's size, patches of 4", 4, Recipe("adamw", 5e-4, 128, 0.0, 0.05)),
    Arch("char-transformer", "which character comes next: 4 layers, width 128", 1,
         Recipe("adamw", 1e-3, 32, 0.0, 0.01), takes="text"),
)  # fmt: skip

ARCHS: dict[str, Arch] = {arch.name: arch for arch in _ALL}
ALIASES: dict[str, str] = {alias: arch.name for arch in _ALL for alias in arch.aliases}


def canonical(name: str) -> str:
    """The catalogue's name for a name or alias; others that exist stay. Raises UserError if unknown."""
    if ":" in name:
        return name
    found = ALIASES.get(name.lower(), name.lower())
    if found in ARCHS:
        return found
    installed = entry_points(group=ENTRY_POINTS).names
    if name not in installed:
        short = [alias for alias in ALIASES if "-" not in alias]
        raise unknown("--arch", name, [*ARCHS, *short, *sorted(installed)])
    return name
