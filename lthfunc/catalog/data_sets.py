"""What is known of each data set before torch is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lthfunc.errors import invalid, unknown
from lthfunc.hardware import user_cache

DATA_DIR_VARIABLE = "LTHFUNC_DATA"
#: How the name of a data set in a file ends.
SUFFIX = ".safetensors"
#: The folder that Tiny-ImageNet's archive makes.
TINY_IMAGENET = "tiny-imagenet-200"

#: What is read by kind, and what stands behind it.
KINDS: dict[str, str] = {
    "folder": "folder:PATH, images in a folder for each class, or such folders in train, val and test",
    "npz": "npz:FILE, arrays x and y, or x_train, y_train, x_test, y_test",
    "hf": "hf:NAME, images with labels of the Hugging Face Hub",
    "text": "text:FILE, characters, for networks that say which comes next",
    "planted": "planted, labelled by a sparse network that pruning should find",
}


class Known(NamedTuple):
    """A data set. mean, std: per channel, of the training pixels in [0, 1]; val: examples held out of training.

    epochs: the default length of a training. augment: whether training images are shifted and mirrored.
    """

    name: str
    about: str
    shape: tuple[int, int, int]
    classes: int
    train: int
    val: int
    test: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: int
    offline: bool = False
    augment: bool = False


_ALL = (
    Known("digits", "small digits, bundled", (1, 8, 8), 10, 1257, 180, 360,
          (0.3053,), (0.3759,), epochs=30, offline=True),
    Known("mnist", "handwritten digits", (1, 28, 28), 10, 55_000, 5_000, 10_000, (0.1307,), (0.3081,), epochs=5),
    Known("fashionmnist", "pieces of clothing", (1, 28, 28), 10, 55_000, 5_000, 10_000,
          (0.2860,), (0.3530,), epochs=12),
    Known("kmnist", "cursive Japanese characters", (1, 28, 28), 10, 55_000, 5_000, 10_000,
          (0.1918,), (0.3483,), epochs=12),
    Known("emnist", "handwritten letters and digits, balanced", (1, 28, 28), 47, 103_800, 9_000, 18_800,
          (0.1751,), (0.3332,), epochs=8),
    Known("svhn", "house numbers", (3, 32, 32), 10, 68_257, 5_000, 26_032,
          (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), epochs=20),
    Known("cifar10", "photographs", (3, 32, 32), 10, 45_000, 5_000, 10_000,
          (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), epochs=30, augment=True),
    Known("cifar100", "photographs", (3, 32, 32), 100, 45_000, 5_000, 10_000,
          (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), epochs=30, augment=True),
    Known("tinyimagenet", "photographs, Tiny-ImageNet", (3, 64, 64), 200, 90_000, 10_000, 10_000,
          (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821), epochs=30, augment=True),
)  # fmt: skip

DATASETS: dict[str, Known] = {known.name: known for known in _ALL}


def default_data_dir() -> Path:
    """Where data sets lie: the environment variable LTHFUNC_DATA, or a folder in the user's cache."""
    if given := os.environ.get(DATA_DIR_VARIABLE):
        return Path(given)
    return user_cache() / "data"


def canonical(name: str) -> str:
    """The catalogue's name; ``package.module:function`` and files stay. Raises UserError if unknown."""
    if name in KINDS and name != "planted":
        raise invalid("--dataset", name, KINDS[name])
    if ":" in name or name.endswith(SUFFIX) or name in KINDS:
        return name
    found = name.lower().replace("-", "")
    if found not in DATASETS:
        raise unknown("--dataset", name, [*DATASETS, *KINDS])
    return found


def kind_of(name: str) -> str | None:
    """The kind that a name is read by; None for a function of the user's own."""
    kind = name.partition(":")[0]
    return kind if kind in KINDS else None
