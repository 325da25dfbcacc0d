"""Archives of NumPy arrays as data sets: all their parts hold together, or one line says what does not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lthfunc as lf
from lthfunc.errors import UserError

N = 40
DRAW = np.random.default_rng(0)
FLOATS = DRAW.normal(size=(N, 5)).astype(np.float32)
IMAGES = DRAW.integers(0, 256, (N, 4, 4), dtype=np.uint8)
CLASSES = np.arange(N) % 4
NUMBERS = DRAW.normal(size=(N, 2))


def three(x: Any, y: Any, **other: Any) -> dict[str, Any]:
    parts = {f"x_{part}": x for part in ("train", "val", "test")} | {
        f"y_{part}": y for part in ("train", "val", "test")
    }
    return parts | other


def changed(array: Any, value: Any, at: Any = 3) -> Any:
    array = array.copy()
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (three(IMAGES, CLASSES, x_val=IMAGES / 255), "x_val: inputs are float32, but those of x_train are uint8"),
        (three(IMAGES / 255, CLASSES, x_test=IMAGES), "x_test: inputs are uint8, but those of x_train are float32"),
        (three(FLOATS, CLASSES, x_val=FLOATS[:, :4]), r"x_val: inputs of shape \(4,\), but those of x_train have \(5,"),
        (three(IMAGES, CLASSES, x_test=IMAGES[:, :3]), r"x_test: inputs of shape \(1, 3, 4\), but those of x_train"),
        (three(FLOATS, CLASSES, y_val=CLASSES[1:]), "x_val has 40 examples and y_val 39"),
        (three(FLOATS, CLASSES, y_test=CLASSES[1:]), "x_test has 40 examples and y_test 39"),
        (three(FLOATS, CLASSES, y_val=changed(CLASSES, -2)), "y_val: target -2 of example 3 is outside the 4 classes"),
        (three(FLOATS, CLASSES, y_val=NUMBERS), r"y_val: targets are numbers \(float32\), but those of y_train are"),
        (three(FLOATS, NUMBERS, y_test=NUMBERS[:, :1]), r"y_test: targets of shape \(1,\), but those of y_train have"),
        (three(FLOATS, CLASSES, x_val=changed(FLOATS, np.nan)), r"x_val holds numbers that .*nan in the input of exam"),
        (three(FLOATS, NUMBERS, y_test=changed(NUMBERS, np.inf)), r"y_test holds numbers .*inf in the target of examp"),
        (three(FLOATS, CLASSES, x_val=FLOATS[:0], y_val=CLASSES[:0]), "x_val: no examples"),
        ({key: three(FLOATS, CLASSES)[key] for key in three(1, 1) if key != "y_val"}, "has no y_val, but x_train"),
        ({"x": FLOATS, "y": CLASSES, "x_test": FLOATS}, "holds x_test beside x and y; expected arrays x_train"),
        ({"x": FLOATS[:, :0], "y": CLASSES}, r"x: inputs of shape \(0,\) are empty"),
        ({"x": FLOATS[:0], "y": CLASSES[:0]}, "x: no examples"),
        ({"x": changed(FLOATS.astype(np.float64), 1e300), "y": CLASSES}, r"x: example 3 holds 1e\+300, too large for"),
        ({"x": FLOATS, "y": changed(NUMBERS, -1e300)}, r"y: example 3 holds -1e\+300, too large for float32"),
        ({"x": FLOATS, "y": CLASSES.astype(complex)}, r"y is complex128 of shape \(40,\); targets are whole numbers o"),
        ({"x": FLOATS.astype(complex), "y": CLASSES}, "x is complex64|x is complex128"),
        ({"x": FLOATS > 0, "y": CLASSES}, r"x is bool of shape \(40, 5\); inputs are uint8 images or floats; array.as"),
        ({"x": IMAGES.astype(np.uint16) * 257, "y": CLASSES}, "x is uint16 .* a division by their white level"),
        ({"x": np.zeros(N, dtype=[("a", "<f4")]), "y": CLASSES}, r"x is \[\('a', '<f4'\)\] of shape"),
        ({"x": FLOATS, "y": CLASSES + 1}, "y: classes are numbered from 1 to 4, and class 0 has no example; subtract"),
        ({"x": FLOATS, "y": CLASSES * 10_000}, "y: a target of 30,000 makes 30,001 classes of 40 targets"),
        ({"x": FLOATS, "y": changed(CLASSES.astype(np.uint64), 2**64 - 1)}, f"y: it holds {2**64 - 1}, but the l"),
        ({"x": FLOATS, "y": np.eye(4, dtype=int)[CLASSES]}, r"y is int64 of shape \(40, 4\): one-hot; y.argmax\(1\) g"),
        ({"x": FLOATS, "y": np.stack([CLASSES] * 2, 1)}, "classes are one whole number for each example"),
        ({"x": FLOATS, "y": np.array(list("abcd") * 10)}, r"np.unique\(y, return_inverse=True\)\[1\] numbers texts"),
        ({"x": FLOATS, "y": np.array(3)}, r"y is int64 of shape \(\); targets are"),
        ({"x": np.float32(3), "y": CLASSES}, r"x is float32 of shape \(\); inputs are"),
    ],
)  # fmt: skip
def test_all_arrays_of_an_archive_are_checked_together(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=words) as caught:
        lf.data.load(f"npz:{tmp_path / 'a.npz'}")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"dataset: {tmp_path / 'a.npz'}: ")


@pytest.mark.parametrize(
    "form", ["big endian", "fortran", "reversed", "half", "long double", "column", "uint64", "bool"]
)
def test_other_orders_and_widths_of_numbers_are_the_same_numbers(tmp_path: Path, form: str) -> None:
    x = {
        "big endian": FLOATS.astype(">f4"), "fortran": np.asfortranarray(FLOATS), "reversed": FLOATS[:, ::-1][:, ::-1],
        "half": FLOATS.astype(np.float16), "long double": FLOATS.astype(np.longdouble),
    }.get(form, FLOATS)  # fmt: skip
    two = CLASSES % 2
    y = {"big endian": two.astype(">i2"), "column": two[:, None], "uint64": two.astype(np.uint64), "bool": two > 0}.get(
        form, two
    )
    np.savez(tmp_path / "a.npz", **three(x, y))
    data = lf.data.load(f"npz:{tmp_path / 'a.npz'}")
    for split in (data.train, data.val, data.test):
        np.testing.assert_array_equal(split.x.numpy(), x.astype(np.float32))
        assert split.x.is_contiguous()
        assert (split.y.tolist(), split.y.dtype) == (two.tolist(), torch.int64)


def test_classes_of_which_some_have_no_example_can_be_said(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=FLOATS, y=CLASSES + 1)
    assert lf.data.load(f"npz:{tmp_path / 'a.npz'}", options={"classes": "7"}).classes == 7
    with pytest.raises(UserError, match="target 4 of example 3 is outside the 4 classes"):
        lf.data.load(f"npz:{tmp_path / 'a.npz'}", options={"classes": "4"})
    np.save(tmp_path / "b.npy", FLOATS)
    with pytest.raises(UserError, match=r"it is one array, a \.npy file; np\.savez writes several"):
        lf.data.load(f"npz:{tmp_path / 'b.npy'}")
    with pytest.raises(UserError, match=r"invalid value 'val=0\.6 test=0\.5' \(expected shares that leave something"):
        lf.data.load(f"npz:{tmp_path / 'a.npz'}", options={"val": "0.6", "test": "0.5"})


def archive(path: Path, arrays: dict[str, tuple[tuple[int, ...], int]]) -> str:
    """Arrays of float32 by name, each of a told shape and of so many zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, (shape, count) in arrays.items():
            head = io.BytesIO()
            np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
            file.writestr(f"{name}.npy", head.getvalue() + bytes(4 * count))
    return f"npz:{path}"


def test_archives_larger_than_memory_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = archive(tmp_path / "told.npz", {"x": ((10**6, 10**6), 10), "y": ((3,), 3)})
    with pytest.raises(UserError, match=r"x\.npy declares 4,000,000,000,000 bytes but holds 40\)"):
        lf.data.load(told)
    wide = archive(tmp_path / "wide.npz", dict.fromkeys(("x", "y"), ((50, 5), 250)))
    monkeypatch.setattr("lthfunc.data.npz.memory_bytes", lambda: 2 * (1000 + 128))
    assert lf.data.load(wide).shape == (5,)
    monkeypatch.setattr("lthfunc.data.npz.memory_bytes", lambda: 2 * (1000 + 128) - 1)
    monkeypatch.setattr(np.lib.npyio.NpzFile, "__getitem__", lambda *given: pytest.fail("an array was unpacked"))
    with pytest.raises(UserError, match=r"its arrays take 0\.0 GB, and this machine's memory has 0\.0 GB\)"):
        lf.data.load(wide)
