"""Data sets of images: a folder of files, and tables of the Hub."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_files import DEEP, H, W, colours, png, to_eight
from PIL import Image

import lthfunc as lf
from lthfunc.downloads import DOWNLOADS
from lthfunc.errors import UserError

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))


def write(root: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return f"folder:{root}"


def test_a_folder_of_deep_grey_images(tmp_path: Path) -> None:
    stored = {f"{label}/{i}.png": DEEP // (1 + i) + (label == "b") for label in "ab" for i in range(8)}
    name = write(tmp_path / "deep", {file: png(pixels, 16, 0) for file, pixels in stored.items()})
    data = lf.data.load(name)
    assert data.shape == (1, H, W)
    found = {x.numpy().tobytes() for split in (data.train, data.val, data.test) for x in split.x}
    assert found == {to_eight(pixels, 16).tobytes() for pixels in stored.values()}
    dark = write(tmp_path / "dark", {file: png(pixels // 64, 16, 0) for file, pixels in stored.items()})
    with pytest.raises(UserError, match=r"no 16-bit image of .*dark has a pixel above 1,023; .*depth=10"):
        lf.data.load(dark)
    assert lf.data.load(dark, options={"depth": "10"}).train.x.max() == 255


def test_one_grey_image_does_not_make_all_others_grey(tmp_path: Path) -> None:
    files = {f"train/{label}/{i}.png": png(colours(i), 8, 2) for label in "ab" for i in range(8)}
    files |= {f"{part}/{label}/0.png": png(colours(9), 8, 2) for part in ("val", "test") for label in "ab"}
    files["train/a/0.png"] = png(colours(0)[..., 0], 8, 0)
    name = write(tmp_path / "d", files)
    for skip in (False, True):
        with pytest.raises(UserError, match=r"\.png: is in colour, the first image grey; dataset option channels=3"):
            lf.data.load(name, skip_broken=skip)
    data = lf.data.load(name, options={"channels": "3"})
    np.testing.assert_array_equal(data.train.x[0].numpy(), np.repeat(colours(0)[None, ..., 0], 3, axis=0))
    np.testing.assert_array_equal(data.train.x[1].numpy(), colours(1).transpose(2, 0, 1))
    gray = lf.data.load(name, options={"channels": "1"})
    luma = colours(1) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(gray.train.x[1, 0].numpy() - luma).max() <= 1
    with pytest.raises(UserError, match=r"invalid value 'channels=4' \(expected 1 \(grey\) or 3 \(RGB\)"):
        lf.data.load(name, options={"channels": "4"})


def test_hidden_files_are_no_examples(tmp_path: Path) -> None:
    files = {f"{label}/{i}.png": png(colours(i), 8, 2) for label in "ab" for i in range(8)}
    more = {"a/._0.png": b"a resource fork", "b/.ipynb_checkpoints/1-checkpoint.png": files["b/1.png"]}
    data = lf.data.load(write(tmp_path / "d", files | more))
    assert sum(len(split.x) for split in (data.train, data.val, data.test)) == 16


class Column:
    """A column's kind, as the package `datasets` names it."""

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names


class Picture(Column):
    """datasets.Image."""


class Label(Column):
    """datasets.ClassLabel."""


class Table(list[dict[str, Any]]):
    """A split, in the part of its interface that is used."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Column]) -> None:
        super().__init__(rows)
        self.features = features

    def __getitem__(self, key: Any) -> Any:
        return [row[key] for row in self] if isinstance(key, str) else super().__getitem__(key)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., lf.Dataset]:
    """hub(images, labels) -> the data set of a hub that holds them, for training and testing."""

    def loaded(images: list[Any], labels: list[Any], kind: Column | None = None, **options: str) -> lf.Dataset:
        rows = [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]
        features = {"image": Picture(), "label": kind or Label(("no", "yes"))}
        package = types.ModuleType("datasets")
        splits = {part: Table(rows, features) for part in ("train", "test")}
        vars(package).update(Image=Picture, ClassLabel=Label, load_dataset=lambda name, config: splits)
        monkeypatch.setitem(sys.modules, "datasets", package)
        return lf.data.load("hf:mine", options=options)

    return loaded


def test_images_of_the_hub_are_read_as_a_folders_are(hub: Callable[..., lf.Dataset]) -> None:
    deep = [Image.open(io.BytesIO(png(DEEP - i, 16, 0))) for i in range(1, 13)]
    data = hub(deep, [i % 2 for i in range(12)])
    np.testing.assert_array_equal(data.test.x[3, 0].numpy(), to_eight(DEEP - 4, 16))
    strokes = [Image.fromarray(np.dstack([0 * colours(i), colours(i)[..., 0]])) for i in range(12)]
    told: list[str] = []
    with DOWNLOADS.watched(told.append):
        data = hub(strokes, [i % 2 for i in range(12)], background="black")
    assert told[0].startswith("downloading mine from the Hugging Face Hub; ")
    assert told[1:] == [""]
    assert int(data.test.x.max()) == 0
    with pytest.raises(UserError, match=r"no 16-bit image of 'hf:mine' has a pixel above 1,023; .*depth=10"):
        hub([Image.fromarray(DEEP // 64)] * 12, [i % 2 for i in range(12)])


def test_rows_of_the_hub_without_an_image_or_a_label(hub: Callable[..., lf.Dataset]) -> None:
    whole = [Image.fromarray(colours(i)) for i in range(12)]
    with pytest.raises(UserError, match="example 0 of mine: is a NoneType, not an image; skip_broken leaves"):
        hub([None, *whole[1:]], [i % 2 for i in range(12)])
    with pytest.raises(UserError, match=r"'hf:mine' has 'cat' in its column 'label' \(expected class numbers from 0"):
        hub(whole, ["cat", "dog"] * 6, Column(), label="label")
    with pytest.raises(UserError, match="'hf:mine' has None in its column 'label'"):
        hub(whole, [None, *(i % 2 for i in range(11))])
