"""The data sets: what is known about each before torch is imported."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lthfunc.errors import invalid, unknown
from lthfunc.hardware import user_cache
from lthfunc.registry import Entry, Registry

DATA_DIR_VARIABLE = "LTHFUNC_DATA"
#: Suffix of the names of data sets in files.
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class DataSetEntry(Entry):
    """mean, std: per channel, of the training pixels in [0, 1]. examples: of the training, validation and test split.

    epochs: the default length of a training. augment: the default of --augment. home: the folder below the data folder
    that holds its files; "" for a bundled one.
    """

    shape: tuple[int, ...] = ()
    classes: int = 0
    examples: tuple[int, int, int] = (0, 0, 0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    epochs: int = 10
    augment: str = "none"
    home: str = ""


#: The arguments of `loading.load` that its signature has -> a Dataset; a user's also gets data_dir.
DATASETS = Registry("datasets", "--dataset", {
    "digits": DataSetEntry(
        ".data.digits:load_digits", "small digits, bundled", "Alpaydin & Kaynak 1998", shape=(1, 8, 8), classes=10,
        examples=(1257, 180, 360), mean=(0.3053,), std=(0.3759,), epochs=30,
    ),
    "mnist": DataSetEntry(
        ".data.vision:load_vision", "handwritten digits", "LeCun et al. 1998", shape=(1, 28, 28), classes=10,
        examples=(55_000, 5_000, 10_000), mean=(0.1307,), std=(0.3081,), epochs=5, home="MNIST/raw",
    ),
    "fashionmnist": DataSetEntry(
        ".data.vision:load_vision", "pieces of clothing", "Xiao et al. 2017", shape=(1, 28, 28), classes=10,
        examples=(55_000, 5_000, 10_000), mean=(0.2860,), std=(0.3530,), epochs=12, home="FashionMNIST/raw",
    ),
    "kmnist": DataSetEntry(
        ".data.vision:load_vision", "cursive Japanese characters", "Clanuwat et al. 2018", shape=(1, 28, 28),
        classes=10,
        examples=(55_000, 5_000, 10_000), mean=(0.1918,), std=(0.3483,), epochs=12, home="KMNIST/raw",
    ),
    "emnist": DataSetEntry(
        ".data.vision:load_vision", "handwritten letters and digits, balanced", "Cohen et al. 2017", shape=(1, 28,
        28), classes=47,
        examples=(103_800, 9_000, 18_800), mean=(0.1751,), std=(0.3332,), epochs=8, home="EMNIST/raw",
    ),
    "svhn": DataSetEntry(
        ".data.vision:load_vision", "house numbers", "Netzer et al. 2011", shape=(3, 32, 32), classes=10,
        examples=(68_257, 5_000, 26_032), mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970), epochs=20,
        home="SVHN",
    ),
    "cifar10": DataSetEntry(
        ".data.vision:load_vision", "photographs", "Krizhevsky 2009", shape=(3, 32, 32), classes=10,
        examples=(45_000, 5_000, 10_000), mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), epochs=30,
        augment="flip-crop", home="cifar-10-batches-py",
    ),
    "cifar100": DataSetEntry(
        ".data.vision:load_vision", "photographs", "Krizhevsky 2009", shape=(3, 32, 32), classes=100,
        examples=(45_000, 5_000, 10_000), mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762), epochs=30,
        augment="flip-crop", home="cifar-100-python",
    ),
    "tinyimagenet": DataSetEntry(
        ".data.image_folder:load_tiny_imagenet", "photographs, Tiny-ImageNet", "Le & Yang 2015", shape=(3, 64, 64),
        classes=200,
        examples=(90_000, 10_000, 10_000), mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821), epochs=30,
        augment="flip-crop", home="tiny-imagenet-200",
    ),
})  # fmt: skip

#: Data sets in files, by kind: the arguments of `loading.load` that its signature has -> a Dataset.
FILE_KINDS = Registry("file kinds", "--dataset", {
    "folder:PATH": Entry(
        ".data.image_folder:read_folder", "images in a folder for each class, or such folders in train, val and test",
        pattern="folder:(?P<path>.*)", example="folder:",
    ),
    "npz:FILE": Entry(
        ".data.npz:read_npz", "arrays x and y, or x_train, y_train, x_test, y_test", pattern="npz:(?P<path>.*)",
        example="npz:",
    ),
    "hf:NAME": Entry(
        ".data.hub:read_hub", "images with labels, or texts, of the Hugging Face Hub", pattern="hf:(?P<path>.*)",
        example="hf:",
    ),
    "text:FILE": Entry(
        ".data.text:read_text", "characters or tokens, for networks that say which comes next",
        pattern="text:(?P<path>.*)", example="text:",
    ),
    "planted": Entry(
        ".data.planted:read_planted", "labelled by a sparse network that pruning should find", pattern="planted",
        example="planted",
    ),
})  # fmt: skip


def default_data_dir() -> Path:
    """The folder of data sets: the environment variable LTHFUNC_DATA, or a folder in the user's cache."""
    if given := os.environ.get(DATA_DIR_VARIABLE):
        return Path(given)
    return user_cache() / "data"


def canonical(name: str, argument: str = DATASETS.option) -> str:
    """The catalogue's name; ``module:function`` and files stay. Raises UserError, on `argument`, if unknown."""
    if (kind := next((key for key in FILE_KINDS if key.startswith(f"{name}:")), None)) is not None:
        raise invalid(argument, name, f"{kind}, {FILE_KINDS[kind].about}")
    if ":" in name or name.endswith(SUFFIX) or FILE_KINDS.find(name) is not None:
        return name
    found = name.lower().replace("-", "")
    if found in DATASETS:
        return found
    if name not in (installed := DATASETS.installed()):
        raise unknown(argument, name, [*DATASETS, *FILE_KINDS, *sorted(installed)])
    return name
