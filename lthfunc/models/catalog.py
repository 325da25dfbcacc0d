"""What is known of each architecture before torch is imported: names, needs, and how the paper trains it."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import NamedTuple

from lthfunc.errors import unknown

#: Entry points by which installed packages add networks.
ENTRY_POINTS = "lthfunc.models"


class Recipe(NamedTuple):
    """Default training settings, used where the user gives none."""

    optimizer: str
    lr: float
    batch_size: int
    momentum: float = 0.0
    weight_decay: float = 0.0


class Arch(NamedTuple):
    """An architecture. min_side: the least height and width of an image that it can work on."""

    name: str
    about: str
    min_side: int
    recipe: Recipe
    aliases: tuple[str, ...] = ()


# Adam's rates and the batch size of 60 are those of Frankle & Carbin 2019, fig. 2. The ResNets use SGD with
# momentum at the low rate with which that paper finds tickets without warm-up (its sec. 4).
_ALL = (
    Arch("lenet300", "LeNet-300-100, fully connected", 1, Recipe("adam", 1.2e-3, 60), ("fc1", "lenet-300-100")),
    Arch("lenet5", "LeNet-5: conv 6-16, fc 120-84", 12, Recipe("adam", 1.2e-3, 60), ("lenet-5",)),
    Arch("conv2", "Conv-2: conv 64, fc 256-256", 2, Recipe("adam", 2e-4, 60), ("conv-2",)),
    Arch("conv4", "Conv-4: conv 64-128, fc 256-256", 4, Recipe("adam", 3e-4, 60), ("conv-4",)),
    Arch("conv6", "Conv-6: conv 64-128-256, fc 256-256", 8, Recipe("adam", 3e-4, 60), ("conv-6",)),
    Arch("resnet20", "ResNet-20, He's for CIFAR", 8, Recipe("sgd", 0.01, 128, 0.9, 1e-4), ("resnet-20",)),
    Arch("resnet18", "ResNet-18, stem for small images", 8, Recipe("sgd", 0.01, 128, 0.9, 1e-4), ("resnet-18",)),
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
        raise unknown("--arch", name, [*ARCHS, *ALIASES, *sorted(installed)])
    return name
