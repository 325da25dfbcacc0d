"""Data in folders and archives of every kind, in their true formats: read right, normalised, refused when broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lthfunc as lf
from lthfunc.catalog.data_sets import DATASETS
from lthfunc.data import mapped
from lthfunc.data.tensors import scale_of
from lthfunc.errors import UserError
from lthfunc.trees.ops import scaled


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))


def pixels(seed: int, size: tuple[int, ...]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def write_folder(root: Path, classes: int = 3, each: int = 6, size: tuple[int, ...] = (8, 8, 3)) -> dict[str, Any]:
    """PNG images, so that every pixel comes back."""
    written = {}
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for number in range(each):
            path = folder / f"{number}.png"
            written[str(path)] = pixels(1000 * label + number + len(str(root)), size)
            Image.fromarray(written[str(path)]).save(path)
    return written


def test_a_folder_is_read_pixel_by_pixel_and_split(tmp_path: Path) -> None:
    written = write_folder(tmp_path / "shots")
    told: list[tuple[int, int]] = []
    data = lf.data.load(f"folder:{tmp_path / 'shots'}", observe=lambda done, total: told.append((done, total)))
    assert told[-1] == (18, 18)
    assert (data.name, data.classes, data.labels) == ("shots", 3, ("class0", "class1", "class2"))
    assert (len(data.train.x), len(data.val.x), len(data.test.x)) == (14, 2, 2)
    assert not data.mapped  # small enough for memory
    found = {(x.permute(1, 2, 0).numpy().tobytes(), int(y)) for split in (data.train, data.val, data.test)
             for x, y in zip(*split, strict=True)}  # fmt: skip
    assert found == {(image.tobytes(), int(Path(path).parent.name[-1])) for path, image in written.items()}
    train = scaled(data.train.x, data.scale)
    torch.testing.assert_close(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_a_folder_is_decoded_once_until_a_file_changes(tmp_path: Path) -> None:
    written = write_folder(tmp_path / "shots")
    told: list[int] = []
    name = f"folder:{tmp_path / 'shots'}"
    first = lf.data.load(name, observe=lambda done, total: told.append(done))
    again = lf.data.load(name, observe=lambda done, total: told.append(-1))
    assert -1 not in told
    assert lf.same_bits(again.train, first.train)
    assert again.scale == first.scale
    Image.fromarray(pixels(77, (8, 8, 3))).save(next(iter(written)))
    lf.data.load(name, observe=lambda done, total: told.append(-2))
    assert -2 in told


@pytest.mark.parametrize("layout", ["train", "train+test", "train+val", "train+valid+test"])
def test_folders_of_splits(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "d"
    for number, split in enumerate(layout.split("+")):
        write_folder(root / split, each=(10, 4, 2)[number], size=(8, 8))
    data = lf.data.load(f"folder:{root}")
    sizes = {"train": (24, 3, 3), "train+test": (27, 3, 12), "train+val": (27, 3, 12), "train+valid+test": (30, 12, 6)}
    assert (len(data.train.x), len(data.val.x), len(data.test.x)) == sizes[layout]
    assert data.shape == (1, 8, 8)  # gray
    few = lf.data.load(f"folder:{root}", options={"each": "4"})
    assert len(few.train.x) + len(few.val.x) + len(few.test.x) == {"train": 12, "train+valid+test": 30}.get(layout, 24)
    held = lf.data.load(f"folder:{root}", options={"val": "0.5"} if layout != "train+valid+test" else {})
    assert len(held.val.x) == (15 if layout != "train+valid+test" else 12)


def test_tiny_imagenets_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "tiny-imagenet-200"
    for label in ("n01443537", "n01629819"):
        (root / "train" / label / "images").mkdir(parents=True)
        for number in range(10):
            Image.fromarray(pixels(number, (64, 64, 3))).save(root / "train" / label / "images" / f"{number}.JPEG")
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)  # as in the archive, without labels
    lines = []
    for number in range(4):
        Image.fromarray(pixels(number, (64, 64, 3))).save(root / "val" / "images" / f"val_{number}.JPEG")
        lines.append(f"val_{number}.JPEG\t{('n01443537', 'n01629819')[number % 2]}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    data = lf.data.load("tiny-imagenet", tmp_path)
    assert (len(data.train.x), len(data.val.x), len(data.test.x)) == (18, 2, 4)
    assert data.test.y.tolist() == [0, 1, 0, 1]
    assert data.shape == DATASETS["tinyimagenet"].shape
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn0\t0\t0\t0\t0\n")
    with pytest.raises(UserError, match=r"line 1 of .*val_annotations\.txt names a class without"):
        lf.data.load("tinyimagenet", tmp_path)
    with pytest.raises(UserError, match=r"unpack tiny-imagenet-200\.zip there"):
        lf.data.load("tinyimagenet", tmp_path / "elsewhere")


def test_images_of_several_sizes_and_broken_ones(tmp_path: Path) -> None:
    root = tmp_path / "d"
    write_folder(root)
    Image.fromarray(pixels(5, (12, 20, 3))).save(root / "class1" / "wide.png")
    (root / "class2" / "half.png").write_bytes((root / "class2" / "0.png").read_bytes()[:80])
    with pytest.raises(UserError, match=r"wide\.png: is 12×20, the first image 8×8; dataset option size=8 resizes"):
        lf.data.load(f"folder:{root}")
    with pytest.raises(
        UserError, match=r"half\.png: cannot be read as an image \(image file is truncated\); skip_broken leaves"
    ):
        lf.data.load(f"folder:{root}", options={"size": "6"})
    data = lf.data.load(f"folder:{root}", options={"size": "6x4"}, skip_broken=True)
    assert data.shape == (3, 6, 4)
    assert sum(len(split.x) for split in (data.train, data.val, data.test)) == 19
    assert not list((tmp_path / "cache" / "data").glob(".*"))  # nothing half-written is left


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("empty", r"class 'class3' has no image in .*class3"),
        ("one", "holds 1 folders; expected one for each"),
        ("none", "an existing folder of images"),
        ("extra", "test/class9 is not a class of the training images"),
        ("share", r"invalid value 'val=2' \(expected a share between 0 and 1"),
        ("size", r"invalid value 'size=big' \(expected a number of pixels, or HEIGHTxWIDTH"),
        ("option", "unknown name 'sise'; did you mean 'size'"),
    ],
)
def test_folders_that_cannot_be_read(tmp_path: Path, harm: str, words: str) -> None:
    root, options = tmp_path / "d", {"share": {"val": "2"}, "size": {"size": "big"}, "option": {"sise": "3"}}.get(harm)
    if harm == "extra":
        write_folder(root / "train")
        write_folder(root / "test")
        (root / "test" / "class9").mkdir()
    elif harm != "none":
        write_folder(root, classes=1 if harm == "one" else 3)
    if harm == "empty":
        (root / "class3").mkdir()
    with pytest.raises(UserError, match=words) as caught:
        lf.data.load(f"folder:{root}", options=options)
    assert "\n" not in str(caught.value)


def test_large_folders_stay_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_INTO_MEMORY", 1)
    write_folder(tmp_path / "d", size=(8, 8))
    data = lf.data.load(f"folder:{tmp_path / 'd'}")
    assert data.mapped
    model = lf.models.lenet300(data.shape, data.classes)
    lf.train(model, data, optimizer=lf.sgd(0.1), steps=2, batch_size=4)(lf.init(model))


@pytest.mark.parametrize("form", ["nhw", "nchw", "nhwc", "floats"])
def test_npz_of_images_and_floats(tmp_path: Path, form: str) -> None:
    size = {"nhw": (40, 8, 9), "nchw": (40, 3, 8, 9), "nhwc": (40, 8, 9, 3), "floats": (40, 7)}[form]
    x = pixels(0, size) if form != "floats" else np.random.default_rng(0).normal(size=size)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 4)
    data = lf.data.load(f"npz:{tmp_path / 'a.npz'}")
    assert data.shape == {"nhw": (1, 8, 9), "floats": (7,)}.get(form, (3, 8, 9))
    assert (len(data.train.x), len(data.val.x), len(data.test.x), data.classes) == (32, 4, 4, 4)
    assert (data.scale is None) == (form == "floats")
    if data.scale is not None:
        assert data.scale == scale_of(data.train.x)


def test_npz_of_splits_and_of_numbers_to_come_close_to(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        f"x_{part}": draw.normal(size=(n, 5)) for part, n in (("train", 30), ("val", 8), ("test", 9))
    }
    arrays |= {f"y_{part}": draw.normal(size=(n,)) for part, n in (("train", 30), ("val", 8), ("test", 9))}
    np.savez(tmp_path / "b.npz", **arrays)
    data = lf.data.load(f"npz:{tmp_path / 'b.npz'}")
    assert (len(data.train.x), len(data.val.x), len(data.test.x), data.classes) == (30, 8, 9, 1)
    np.testing.assert_allclose(data.val.y[:, 0].numpy(), arrays["y_val"], rtol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": np.zeros(3)}, "holds images; expected arrays x_train, y_train"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(8, int)}, "x has 9 examples and y 8"),
        ({"x": np.zeros((9, 2)), "y": -np.ones(9, int)}, r"target -1 of example 0 is outside the 0 classes|outside"),
        ({"x": np.zeros((9, 2), int), "y": np.zeros(9, int)}, "x is int64 of shape"),
        ({"x": np.full((9, 2), np.nan), "y": np.zeros(9, int)}, "x holds numbers that are not finite"),
        ({"x": np.zeros((9, 2)), "y": np.array(list("abcdefghi"))}, "targets are whole numbers or floats"),
        ({"x": np.array([{}] * 9), "y": np.zeros(9, int)}, r"cannot be read as a \.npz file \(it holds Python objects"),
    ],
)
def test_npz_files_that_hold_something_else(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        lf.data.load(f"npz:{tmp_path / 'c.npz'}")
    assert "\n" not in str(caught.value)


def test_npz_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 and nothing")
    for path in (tmp_path / "d.npz", tmp_path / "absent.npz"):
        with pytest.raises(UserError, match=r"cannot be read as a \.npz file"):
            lf.data.load(f"npz:{path}")
