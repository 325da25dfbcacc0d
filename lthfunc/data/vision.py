"""MNIST, Fashion-MNIST and the CIFARs through torchvision: read, check, download."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

from lthfunc.data.catalog import DATA_DIR_VARIABLE, DATASETS
from lthfunc.errors import UserError

_CLASSES: dict[str, Any] = {
    "mnist": torchvision.datasets.MNIST,
    "fashionmnist": torchvision.datasets.FashionMNIST,
    "cifar10": torchvision.datasets.CIFAR10,
    "cifar100": torchvision.datasets.CIFAR100,
}
_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
Pair = tuple[Tensor, Tensor]


def read_vision(name: str, folder: Path, *, download: bool) -> tuple[Pair, Pair]:
    """(train, test): images uint8 (n, channels, height, width), targets int64.

    Raises UserError where files are missing and can't be downloaded, or one is broken.
    """
    source = _home(name, folder)
    if not source.exists():
        if not download:
            raise _absent(name, folder, "downloading is off")
        _download(name, folder)
    read = _read_idx if "mnist" in name else _read_cifar
    train, test = read(name, source)
    known = DATASETS[name]
    for part, expected in ((train, known.train + known.val), (test, known.test)):
        images, targets = part
        if images.shape != (expected, *known.shape) or targets.shape != (expected,):
            raise _broken(name, source, f"it holds images of shape {tuple(images.shape)}")
        if not 0 <= int(targets.min()) <= int(targets.max()) < known.classes:
            raise _broken(name, source, f"its targets are not in 0 … {known.classes - 1}")
    return train, test


def _home(name: str, folder: Path) -> Path:
    """The folder torchvision keeps a data set's files in, below the data folder."""
    kind = _CLASSES[name]
    return folder / str(kind.__name__) / "raw" if "mnist" in name else folder / str(kind.base_folder)


def _read_idx(name: str, source: Path) -> tuple[Pair, Pair]:
    def read(file: str) -> Tensor:
        path = source / file
        if not path.exists():
            raise _broken(name, path, "it is missing")
        try:
            # The reader of torchvision's own MNIST class; called per file, so that the broken one has a name.
            return torchvision.datasets.mnist.read_sn3_pascalvincent_tensor(str(path), strict=True)  # type: ignore[no-any-return]
        except (AssertionError, ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
            raise _broken(name, path, "it is not a whole IDX file") from error

    train_x, train_y, test_x, test_y = (read(file) for file in _MNIST_FILES)
    return (train_x.unsqueeze(1), train_y.long()), (test_x.unsqueeze(1), test_y.long())


def _read_cifar(name: str, source: Path) -> tuple[Pair, Pair]:
    kind = _CLASSES[name]
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        # The files are pickles: only those with the published checksum are opened.
        if not torchvision.datasets.utils.check_integrity(str(source / file), md5):
            raise _broken(name, source / file, "it is missing or its checksum is wrong")

    def read(train: bool) -> Pair:
        part = kind(str(source.parent), train=train, download=False)
        return torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))), torch.tensor(part.targets)

    return read(True), read(False)


def _download(name: str, folder: Path) -> None:
    """Download beside the target and move the whole there, so that a broken-off download leaves nothing behind."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch:
            with _silence():
                _CLASSES[name](scratch, download=True)
            target = _home(name, folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(_home(name, Path(scratch)), target)
    except (OSError, RuntimeError) as error:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the servers did not answer"
        raise _absent(name, folder, reason) from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """torchvision prints the error of each mirror it tries; ours is one line at the end."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _absent(name: str, folder: Path, reason: str) -> UserError:
    return UserError(
        f"--dataset: {name!r} is not in {folder} and could not be downloaded ({reason}); name a folder that holds "
        f"it with --data-dir or {DATA_DIR_VARIABLE}, or use --dataset digits, which needs no network"
    )


def _broken(name: str, path: Path, reason: str) -> UserError:
    return UserError(f"--data-dir: {name!r} cannot be read from {path}: {reason}; delete it to download it again")
