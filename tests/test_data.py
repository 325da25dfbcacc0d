"""Data sets: real files read right, broken ones refused, splits apart, augmentation against a loop."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
import socket
import time
import urllib.error
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from lthfunc_cli.console import busy
from lthfunc_cli.downloads import downloads_shown

import lthfunc as lf
from lthfunc.catalog.data_sets import DATASETS, default_data_dir
from lthfunc.data import vision
from lthfunc.data.digits import read_digits
from lthfunc.downloads import DOWNLOADS
from lthfunc.errors import UserError
from lthfunc.trees.ops import scaled
from lthfunc.trees.rng import counter_key, fold_in, integers


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.flatten(1)}


def test_the_bundled_digits_are_scikit_learns() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_digits()
    images, targets = read_digits()
    assert torch.equal(images, torch.from_numpy(theirs.images).float().div_(16).unsqueeze(1))
    assert torch.equal(targets, torch.from_numpy(theirs.target))


def test_digits_are_split_in_three_and_normalised(digits: lf.Dataset) -> None:
    known = DATASETS["digits"]
    assert (len(digits.train.x), len(digits.val.x), len(digits.test.x)) == known.examples
    everything = torch.cat([digits.train.x, digits.val.x, digits.test.x])
    images, targets = read_digits()
    expected = (images.double().numpy() - known.mean[0]) / known.std[0]
    np.testing.assert_allclose(np.sort(everything.numpy().ravel()), np.sort(expected.ravel()), rtol=1e-5, atol=1e-6)
    assert len(rows(digits.train.x) | rows(digits.val.x) | rows(digits.test.x)) == len(rows(everything))
    assert sorted(torch.cat([digits.train.y, digits.val.y, digits.test.y]).tolist()) == sorted(targets.tolist())


def test_digits_constants_are_those_of_the_training_pixels(digits: lf.Dataset) -> None:
    pixels = torch.cat([digits.train.x, digits.val.x])
    assert pixels.mean().abs().item() < 0.01
    assert pixels.std().item() == pytest.approx(1, abs=0.01)


def test_mnist_is_the_genuine_one(mnist_dir: Path) -> None:
    data = lf.data.load("MNIST", mnist_dir, download=False)
    assert (data.train.x.shape, data.val.x.shape) == ((55_000, 1, 28, 28), (5_000, 1, 28, 28))
    assert data.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.train.x.dtype == torch.uint8
    images = scaled(torch.cat([data.train.x, data.val.x]), data.scale)
    assert images.mean().abs().item() < 1e-3
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.bincount(torch.cat([data.train.y, data.val.y]))[0] == 5923


@pytest.fixture
def mnist_copy(mnist_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(mnist_dir / "MNIST", tmp_path / "MNIST")
    for file in tmp_path.rglob("*"):
        file.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("harm", ["cut", "empty", "gone", "noise", "labels"])
def test_a_broken_file_is_named_in_one_line(mnist_copy: Path, harm: str) -> None:
    path = mnist_copy / "MNIST" / "raw" / ("train-labels-idx1-ubyte" if harm == "labels" else "t10k-images-idx3-ubyte")
    raw = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": raw[:-9], "empty": b"", "noise": b"\xff" * 99, "labels": raw[:-1] + b"\x63"}[harm])
    with pytest.raises(UserError, match=r"^data_dir: 'mnist' cannot be read from") as caught:
        lf.data.load("mnist", mnist_copy)
    assert "\n" not in str(caught.value)
    if harm != "labels":
        assert path.name in str(caught.value)


def test_a_cifar_file_without_the_published_checksum_is_never_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        (folder / name).write_bytes(b"\x80\x04not the real file")
    with pytest.raises(UserError, match="data_batch_1: it is missing or its checksum is wrong"):
        lf.data.load("cifar10", tmp_path)


def test_cifar_files_are_read_for_their_arrays_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pickled(count: int, first: int) -> bytes:
        pixels = np.arange(first, first + count * 3072).astype(np.uint8).reshape(count, 3072)
        content = {"data": pixels, "labels": [label % 10 for label in range(count)], "batch_label": "some"}
        return pickle.dumps(content, protocol=2).replace(b"numpy._core", b"numpy.core")

    kind = vision._CLASSES["cifar10"]
    files = {name: pickled(3, 7 * number) for number, (name, _) in enumerate([*kind.train_list, *kind.test_list])}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr("torchvision.datasets.utils.check_integrity", lambda path, md5: True)
    (train, targets), (test, _) = vision._read_cifar("cifar10", tmp_path)
    assert train.shape == (15, 3, 32, 32)
    assert targets.tolist() == [0, 1, 2] * 5
    assert test.flatten().tolist() == np.arange(35, 35 + 3 * 3072).astype(np.uint8).tolist()

    class Stranger:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "stranger-was-here",)

    (tmp_path / kind.train_list[0][0]).write_bytes(pickle.dumps({"data": Stranger()}))
    with pytest.raises(UserError, match=r"it holds more than arrays"):
        vision._read_cifar("cifar10", tmp_path)
    assert not (tmp_path / "stranger-was-here").exists()


class Terminal(io.StringIO):
    """Takes what is printed, as a terminal of 300 columns."""

    def isatty(self) -> bool:
        return True


class Offline:
    """Stands for torchvision's classes on a machine without a network; it fails as they do."""

    def __init__(self, root: str, download: bool) -> None:
        (Path(root) / "half-a-file").write_bytes(b"x")
        raise urllib.error.URLError("no route")


def test_without_network_and_files_one_line_names_both_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Offline.__name__ = "FashionMNIST"
    monkeypatch.setitem(vision._CLASSES, "fashionmnist", Offline)
    for folder in (tmp_path / "new" / "data", tmp_path):
        with pytest.raises(UserError, match=r"by data_dir or LTHFUNC_DATA, or use digits") as caught:
            lf.data.load("fashionmnist", folder)
        assert ("a folder that does not exist" in str(caught.value)) == (folder != tmp_path)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*half*"))
    assert not (tmp_path / "new" / "data").exists()


def test_a_download_lands_whole(tmp_path: Path, mnist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Online:
        def __init__(self, root: str, download: bool) -> None:
            shutil.copytree(mnist_dir / "MNIST", Path(root) / "MNIST")

    Online.__name__ = "MNIST"
    monkeypatch.setitem(vision._CLASSES, "mnist", Online)
    assert len(lf.data.load("mnist", tmp_path / "data").test.x) == 10_000
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_a_download_says_at_once_from_where_and_gives_a_silent_server_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr("lthfunc.downloads._SILENT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent, downloads_shown():  # it accepts, and sends nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(vision._CLASSES["mnist"], "mirrors", [address])
        with pytest.raises(UserError, match=r"'mnist' is not in .* could not be downloaded"):
            lf.data.load("mnist", tmp_path / "data")
    assert f"downloading mnist from {address[7:-1]} into {tmp_path}/data; a server" in terminal.getvalue()
    assert socket.getdefaulttimeout() is None
    assert not (tmp_path / "data").exists()


def test_what_is_fetched_from_an_address_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path))
    fsspec.filesystem("memory").pipe("/told/one.txt", b"the quick brown fox " * 20)
    told: list[str] = []
    with DOWNLOADS.watched(told.append):
        for _ in range(2):
            assert lf.data.load("text:memory://told/one.txt", options={"length": "5"}).classes == 16
    assert told == [f"downloading memory://told/one.txt into {tmp_path}/fetched; a server that is silent for 20 s is "
                    "given up", ""]  # fmt: skip


def test_the_indicator_moves_on_while_a_librarys_words_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with busy("one") as update, contextlib.redirect_stderr(io.StringIO()) as caught:
        update("two")
        for _ in range(1000):  # until it is drawn
            drawn = terminal.getvalue()
            if "two" in drawn:
                break
            time.sleep(0.01)
    assert "two" in drawn
    assert caught.getvalue() == ""


def test_an_interrupted_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(root: str, download: bool) -> None:
        (Path(root) / "half-a-file").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setitem(vision._CLASSES, "mnist", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lf.data.load("mnist", tmp_path / "data")
    assert not list(tmp_path.iterdir())


def test_the_data_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LTHFUNC_DATA", str(tmp_path))
    assert default_data_dir() == tmp_path
    monkeypatch.delenv("LTHFUNC_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "lthfunc" / "data"


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UserError, match=r"^name: unknown name 'minst'; did you mean 'mnist'"):
        lf.data.load("minst")
    with pytest.raises(AttributeError, match="no attribute 'magnitude_prune'; did you mean 'magnitude'"):
        lf.magnitude_prune  # noqa: B018


def test_anybodys_tensors_make_a_data_set() -> None:
    x, y = torch.randn(50, 3), torch.arange(50) % 4
    data = lf.data.from_tensors("own", (x, y), (x[:9], y[:9]), val=10)
    assert (len(data.train.x), len(data.val.x), len(data.test.x), data.classes) == (40, 10, 9, 4)
    assert rows(data.train.x) | rows(data.val.x) == rows(x)
    assert data.shape == (3,)
    for val in (0, 50):
        with pytest.raises(UserError, match=f"val: invalid value {val}"):
            lf.data.from_tensors("own", (x, y), (x, y), val=val)
    with pytest.raises(UserError, match="train: 50 inputs but 49 targets"):
        lf.data.from_tensors("own", (x, y[1:]), (x, y), val=10)


def test_augmentation_shifts_and_mirrors_each_image_as_a_plain_loop_does() -> None:
    images = torch.rand(64, 3, 9, 11)
    key = counter_key(4, "step")
    result = lf.shift_and_mirror(images, key)
    top, left = (integers(fold_in(key, axis), 64, 9) for axis in (0, 1))
    mirror = integers(fold_in(key, 2), 64, 2)
    for i in range(64):
        image = torch.nn.functional.pad(images[i], (4, 4, 4, 4))
        image = image[:, top[i] : top[i] + 9, left[i] : left[i] + 11]
        assert torch.equal(result[i], image.flip(-1) if mirror[i] else image)
    assert 0 < int(mirror.sum()) < 64
