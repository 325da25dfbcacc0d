"""What is known of each data set before torch is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from lthfunc.errors import unknown
from lthfunc.hardware import user_cache

DATA_DIR_VARIABLE = "LTHFUNC_DATA"
#: How the name of a data set in a file ends.
SUFFIX = ".safetensors"


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
    Known("cifar10", "photographs", (3, 32, 32), 10, 45_000, 5_000, 10_000,
          (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), epochs=30, augment=True),
    Known("cifar100", "photographs", (3, 32, 32), 100, 45_000, 5_000, 10_000,
          (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), epochs=30, augment=True),
)  # fmt: skip

DATASETS: dict[str, Known] = {known.name: known for known in _ALL}


def default_data_dir() -> Path:
    """Where data sets lie: the environment variable LTHFUNC_DATA, or a folder in the user's cache."""
    if given := os.environ.get(DATA_DIR_VARIABLE):
        return Path(given)
    return user_cache() / "data"


def canonical(name: str) -> str:
    """The catalogue's name; ``package.module:function`` and files stay. Raises UserError if unknown."""
    if ":" in name or name.endswith(SUFFIX):
        return name
    found = name.lower().replace("-", "")
    if found not in DATASETS:
        raise unknown("--dataset", name, DATASETS)
    return found
