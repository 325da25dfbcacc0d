"""Texts, planted labels, published formats and the hub: read right, drawn and described, and refused when broken."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from PIL import Image
from test_readers import _own_cache, pixels, write_folder  # noqa: F401
from torch import Tensor

import lthfunc as lf
from lthfunc.catalog.data_sets import DATASETS
from lthfunc.data.tensors import scale_of
from lthfunc.errors import UserError

TEXT = "the quick brown fox jumps over the lazy dog. äöü\n" * 60


def test_text_is_windows_and_what_follows(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    data = lf.data.load(f"text:{tmp_path / 't.txt'}", options={"length": "16"})
    assert data.tokens
    assert data.labels == tuple(sorted(set(TEXT)))
    for split, first in ((data.train, 0), (data.test, round(0.9 * len(TEXT)))):
        read = "".join(data.labels[i] for i in split.x.flatten().tolist())
        assert read == TEXT[first : first + len(read)]
        following = "".join(data.labels[i] for i in split.y.flatten().tolist())
        assert following == TEXT[first + 1 : first + 1 + len(read)]


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (b"\xff\xfe\x00", {}, "cannot be read as text .it is not UTF-8"),
        (b"short", {}, "has 5 characters, too few for three splits of windows of 64"),
        (b"a" * 2000, {"length": "0"}, r"invalid value 'length=0' \(expected a whole number above 0"),
        (None, {}, r"cannot be read as text \(No such file"),
    ],
)
def test_text_that_is_none(tmp_path: Path, content: bytes | None, options: dict[str, str], words: str) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match=words):
        lf.data.load(f"text:{tmp_path / 't'}", options=options)


def test_a_planted_teacher_labels_the_data_and_its_inputs_are_found() -> None:
    """Half of the inputs matter to nobody; the survivors of the student's first layer read the others."""
    teacher = lf.data.planted_teacher(40, 6, 4, density=0.1, seed=3)
    assert int(teacher.masks["0.weight"].sum()) == 6 * 4
    data = lf.data.load("planted", options={"hidden": "6", "seed": "3", "examples": "6000"})
    logits = torch.relu(data.train.x @ teacher.params["0.weight"].T) @ teacher.params["2.weight"].T
    agree = ((logits - logits.mean(0)) / logits.std(0)).argmax(1) == data.train.y
    assert float(agree.double().mean()) > 0.97  # it was centred on all examples, not on these
    assert torch.bincount(data.train.y).min() > 0.05 * len(data.train.y)
    matter = teacher.masks["0.weight"].any(0)
    model = lf.models.lenet300(data.shape, data.classes)
    train = lf.train(model, data, optimizer=lf.adam(1.2e-3), steps=300)
    start = lf.init(model)
    find = lf.compose(train, lf.prune(fraction=0.5), lf.rewind(to=start))
    found = lf.iterate(find, rounds=5)(start)
    reads = found.masks["fc1.weight"].sum(0).double()
    share = float(reads[matter].sum() / reads.sum())
    assert share > 1.5 * float(matter.double().mean())


def test_labels_outside_the_classes_are_named() -> None:
    x, y = torch.randn(20, 3), torch.arange(20) % 4
    with pytest.raises(UserError, match="train: target 3 of example 3 is outside the 3 classes, 0 to 2"):
        lf.data.from_tensors("d", (x, y), (x, y), val=4, classes=3)
    with pytest.raises(UserError, match="test: target -1 of example 0"):
        lf.data.from_tensors("d", (x, y), (x, y - 1), val=4)
    with pytest.raises(UserError, match=r"scale: mean: .* a number for each of 1 channels"):
        lf.data.from_tensors("d", (x[:, None], y), (x[:, None], y), val=4, scale=lf.Scale(1.0, (0.0, 0.0), (1.0, 1.0)))


def idx(path: Path, array: np.ndarray[Any, Any]) -> None:
    """The format of MNIST's files: magic number with the type and dimensions, sizes, bytes."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(side).to_bytes(4, "big") for side in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's data sets, of a few examples."""
    for name in ("kmnist", "emnist", "svhn"):
        monkeypatch.setitem(DATASETS.data, name, replace(DATASETS[name], examples=(80, 20, 30)))


@pytest.mark.usefixtures("_few")
@pytest.mark.parametrize("name", ["kmnist", "emnist"])
def test_the_family_of_mnist(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name.upper() / "raw"
    x, y = {"train": pixels(0, (100, 28, 28)), "t10k": pixels(1, (30, 28, 28))}, np.arange(100) % 10
    for part, images in x.items():
        prefix = part if name == "kmnist" else f"emnist-balanced-{'test' if part == 't10k' else part}"
        idx(folder / f"{prefix}-images-idx3-ubyte", images)
        idx(folder / f"{prefix}-labels-idx1-ubyte", y[: len(images)])
    data = lf.data.load(name, tmp_path, download=False)
    first = torch.from_numpy(x["t10k"][0])
    assert torch.equal(data.test.x[0, 0], first.T if name == "emnist" else first)
    assert data.test.y.tolist() == [i % 10 for i in range(30)]
    assert data.classes == DATASETS[name].classes


@pytest.mark.usefixtures("_few")
def test_svhn_is_read_from_its_matlab_files(tmp_path: Path) -> None:
    from scipy.io import savemat

    (tmp_path / "SVHN").mkdir()
    images = {"train": pixels(0, (32, 32, 3, 100)), "test": pixels(1, (32, 32, 3, 30))}
    for part, x in images.items():
        savemat(tmp_path / "SVHN" / f"{part}_32x32.mat", {"X": x, "y": 1 + np.arange(x.shape[3])[:, None] % 10})
    data = lf.data.load("svhn", tmp_path, download=False)
    assert torch.equal(data.test.x[3], torch.from_numpy(images["test"][:, :, :, 3].transpose(2, 0, 1).copy()))
    assert data.test.y[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # 10 is written for 0
    (tmp_path / "SVHN" / "test_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"test_32x32\.mat: it is not SVHN's MATLAB file"):
        lf.data.load("svhn", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the package datasets is not installed")
def test_data_sets_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    folder = tmp_path / "mine"
    folder.mkdir()
    for part, count in (("train", 40), ("test", 10)):
        images = [Image.fromarray(pixels(i, (8, 8, 3))) for i in range(count)]
        made = datasets.Dataset.from_dict({"image": images, "label": [i % 2 for i in range(count)]}, features=features)
        made.to_parquet(folder / f"{part}-00000-of-00001.parquet")
    data = lf.data.load(f"hf:{folder}")
    assert (len(data.train.x), len(data.val.x), len(data.test.x)) == (36, 4, 10)
    assert (data.name, data.labels, data.shape) == ("mine", ("no", "yes"), (3, 8, 8))
    assert torch.equal(data.test.x[3], torch.from_numpy(pixels(3, (8, 8, 3)).transpose(2, 0, 1).copy()))
    with pytest.raises(UserError, match="unknown name 'picture'"):
        lf.data.load(f"hf:{folder}", options={"image": "picture"})


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets \(pip install 'lthfunc\[hf\]'\)"):
        lf.data.load("hf:mnist")


@pytest.mark.parametrize("kind", ["npz", "hf", "text"])
def test_shares_are_shares_in_every_reader(kind: str) -> None:
    with pytest.raises(UserError, match=r"invalid value 'test=1' \(expected a share between 0 and 1"):
        lf.data.load(f"{kind}:x", options={"test": "1"})


@pytest.mark.parametrize("name", ["digits", "planted"])
def test_datasets_show_draws_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = name == "digits"
    assert main(["datasets", "show", name]) == 0
    out = capsys.readouterr().out
    assert ("1,257 training, 180 validation, 360 test" if drawn else "8,000 training") in out
    assert ("--out FILE.png" in out) == drawn
    assert list(tmp_path.iterdir()) == []
    assert main(["datasets", "show", name, "--out", "examples.png"]) == (0 if drawn else 2)
    assert (tmp_path / "examples.png").exists() == drawn
    assert drawn or "--out: 'planted' has no images" in capsys.readouterr().err


def test_datasets_show_a_text_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.txt").write_text(TEXT, encoding="utf-8")
    assert main(["datasets", "show", "text:t.txt"]) == 0
    assert "windows of 64 characters, from an alphabet of" in capsys.readouterr().out
    np.savez("n.npz", x=np.random.default_rng(0).normal(size=(50, 3)), y=np.linspace(0, 1, 50))
    assert main(["datasets", "show", "npz:n.npz"]) == 0
    assert "targets: 1 numbers, mean 0.5" in capsys.readouterr().out
    assert main(["datasets", "show", "folder"]) == 2
    assert "folder:PATH, images in a folder for each class" in capsys.readouterr().err


def test_a_run_says_what_its_data_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "shots", each=20)
    command = "prune --arch lenet300 --dataset folder:shots --rounds 1 --steps 3 --batch-size 8 --out run"
    assert main(command.split()) == 0
    about = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    data = lf.data.load("folder:shots")
    assert about["data"]["scale"]["mean"] == list(data.scale.mean) if data.scale else False
    assert about["data"]["train"] == len(data.train.x)


def test_scale_is_per_channel() -> None:
    x = torch.from_numpy(pixels(0, (50, 3, 4, 4)))
    x[:, 1] = 7
    found = scale_of(x)

    def wanted(channel: int) -> Tensor:
        return x[:, channel].double() / 255

    assert found.mean == pytest.approx([float(wanted(c).mean()) for c in range(3)])
    assert found.std == pytest.approx([float(wanted(0).std(correction=0)), 1.0, float(wanted(2).std(correction=0))])


@pytest.mark.parametrize("kind", ["npz", "text"])
def test_what_may_have_no_end_is_not_read(kind: str, tmp_path: Path) -> None:
    """Nobody writes into this pipe: whoever opens it waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    for file in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(UserError, match=r"cannot be read as .* \(it is not a regular file\)"):
            lf.data.load(f"{kind}:{file}")
