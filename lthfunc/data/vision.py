"""The MNIST family, SVHN and the CIFARs through torchvision: read, check, download."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
import torchvision
from torch import Tensor

from lthfunc.catalog.data_sets import DATA_DIR_VARIABLE, DATASETS, DataSetEntry
from lthfunc.data.tensors import from_tensors
from lthfunc.downloads import downloading
from lthfunc.errors import UserError
from lthfunc.trees.types import Dataset, Scale

#: torchvision's class of each name in the catalogue.
_CLASSES: dict[str, Any] = {
    name.lower(): getattr(torchvision.datasets, name)
    for name in ("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "SVHN", "CIFAR10", "CIFAR100")
}
_MNIST_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
Pair = tuple[Tensor, Tensor]


def load_vision(name: str, entry: DataSetEntry, folder: Path, download: bool) -> Dataset:
    """A data set of torchvision's files, normalised by the published constants.

    Raises UserError where files are missing and cannot be downloaded, or one is broken.
    """
    source = folder / entry.home
    if not source.exists():
        if not download:
            raise _absent(name, folder, "downloading is off", new=not folder.exists())
        _download(name, folder)
    read = _read_idx if "mnist" in name else _read_svhn if name == "svhn" else _read_cifar
    train, test = read(name, source)
    for (images, targets), expected in ((train, sum(entry.examples[:2])), (test, entry.examples[2])):
        if images.shape != (expected, *entry.shape) or targets.shape != (expected,):
            raise _broken(name, source, f"it holds images of shape {tuple(images.shape)}")
        if not 0 <= int(targets.min()) <= int(targets.max()) < entry.classes:
            raise _broken(name, source, f"its targets are not in 0 … {entry.classes - 1}")
    scale = Scale(255, entry.mean, entry.std)
    return from_tensors(name, train, test, val=entry.examples[1], classes=entry.classes, scale=scale)


def _read_idx(name: str, source: Path) -> tuple[Pair, Pair]:
    def read(file: str) -> Tensor:
        path = source / file
        if not path.exists():
            raise _broken(name, path, "it is missing")
        try:
            # The reader of torchvision's own MNIST class; called per file, so that the broken one has a name.
            return torchvision.datasets.mnist.read_sn3_pascalvincent_tensor(str(path), strict=True)  # type: ignore[no-any-return]
        except (AssertionError, ValueError, KeyError, IndexError, OSError, RuntimeError) as error:
            raise _broken(name, path, "it is not a complete IDX file") from error

    if name == "emnist":  # its files hold images on their side
        files = [f"emnist-balanced-{file.replace('t10k', 'test')}" for file in _MNIST_FILES]
        train_x, train_y, test_x, test_y = (read(file) for file in files)
        train_x, test_x = train_x.transpose(1, 2).contiguous(), test_x.transpose(1, 2).contiguous()
    else:
        train_x, train_y, test_x, test_y = (read(file) for file in _MNIST_FILES)
    return (train_x.unsqueeze(1), train_y.long()), (test_x.unsqueeze(1), test_y.long())


def _read_svhn(name: str, source: Path) -> tuple[Pair, Pair]:
    from scipy.io import loadmat

    def read(part: str) -> Pair:
        path = source / f"{part}_32x32.mat"
        try:
            arrays = loadmat(path)
            pixels, digits = arrays["X"], arrays["y"].astype(np.int64).ravel()
            images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
        except Exception as error:  # a MATLAB file's reader raises what it meets
            raise _broken(name, path, "it is not SVHN's MATLAB file" if path.exists() else "it is missing") from error
        return images, torch.from_numpy(digits % 10)  # 0 is written 10

    return read("train"), read("test")


def _read_cifar(name: str, source: Path) -> tuple[Pair, Pair]:
    kind = _CLASSES[name]
    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        # The files are pickles: only those with the published checksum are opened, and only arrays are made of them.
        if not torchvision.datasets.utils.check_integrity(str(source / file), md5):
            raise _broken(name, source / file, "it is missing or its checksum is wrong")

    def arrays(path: Path) -> dict[str, Any]:
        try:
            with path.open("rb") as file:
                found: dict[str, Any] = _ArraysOnly(file, encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise _broken(name, path, f"it holds more than arrays ({error})") from error
        return found

    def read(files: list[tuple[str, str]]) -> Pair:
        parts = [arrays(source / file) for file, _ in files]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        targets = [label for part in parts for label in part["fine_labels" if "fine_labels" in part else "labels"]]
        return torch.from_numpy(images), torch.tensor(targets)

    return read(kind.train_list), read(kind.test_list)


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and plain containers, and refuses whatever else a pickle asks for."""

    def find_class(self, module: str, name: str) -> Any:
        """What arrays are made by. Raises UnpicklingError for anything else."""
        known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__new__,
            ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__new__,
            ("_codecs", "encode"): lambda text, codec: text.encode("latin1"),
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return known[module, name]


def _download(name: str, folder: Path) -> None:
    """Download beside the target and move the whole there, so that an interrupted download leaves nothing behind."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}-") as scratch,
            downloading(f"{name} from {_server(name)} into {folder}"),
        ):
            # torchvision prints the error of each mirror that it tries; ours is one line at the end.
            quiet = io.StringIO()
            with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet), _within():
                _fetch(name, scratch)
            target = folder / DATASETS[name].home
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(scratch) / DATASETS[name].home, target)
    except BaseException as error:
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if not isinstance(error, (OSError, RuntimeError)):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "the servers did not answer"
        raise _absent(name, folder, reason, new=new) from error


def _server(name: str) -> str:
    """The server that torchvision asks first."""
    kind = _CLASSES[name]
    parts = getattr(kind, "split_list", {}).values()
    addresses = (getattr(kind, "url", ""), *getattr(kind, "mirrors", ()), *(address for address, *_ in parts))
    return urlsplit(next(filter(None, addresses), "")).netloc


def _fetch(name: str, folder: str) -> None:
    if name == "svhn":
        for split in ("train", "test"):
            _CLASSES[name](str(Path(folder) / "SVHN"), split=split, download=True)
    elif name == "emnist":
        _CLASSES[name](folder, split="balanced", download=True)
    else:
        _CLASSES[name](folder, download=True)


@contextlib.contextmanager
def _within() -> Iterator[None]:
    """Unpack archives (whose checksums torchvision knows) without leaving their folder."""
    if not hasattr(tarfile, "data_filter"):
        yield
        return
    before = tarfile.TarFile.__dict__.get("extraction_filter")
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


def _absent(name: str, folder: Path, reason: str, *, new: bool) -> UserError:
    where = f"{folder}, a folder that does not exist," if new else folder
    return UserError(
        f"dataset: {name!r} is not in {where} and could not be downloaded ({reason}); name a folder that holds "
        f"it by data_dir or {DATA_DIR_VARIABLE}, or use digits, which needs no network"
    )


def _broken(name: str, path: Path, reason: str) -> UserError:
    return UserError(f"data_dir: {name!r} cannot be read from {path}: {reason}; delete it to download it again")
