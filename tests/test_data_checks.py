"""Every part of a data set is checked together, whatever it was read from: a line for a fault, a hint for oddities."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from test_npz import CLASSES, FLOATS, IMAGES, NUMBERS, N, changed
from torch.utils.data import DataLoader, TensorDataset

import lthfunc as lf
from lthfunc.data.content_checks import checked_dataset
from lthfunc.errors import UserError


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (IMAGES.astype(np.float32), CLASSES, "inputs are whole numbers from 0 to 255 stored as floats"),
        (FLOATS, CLASSES.astype(np.float32), "targets are whole numbers stored as floats"),
        (FLOATS, np.eye(4)[CLASSES], r"targets are one-hot, .*; y\.argmax\(1\) makes classes of them"),
    ],
)
def test_what_is_rarely_meant_gets_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, x: Any, y: Any, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    x = changed(x, 255) if x is not FLOATS else x
    np.savez("a.npz", x=x, y=y)
    with pytest.warns(lf.data.DataWarning, match=words):
        data = lf.data.load("npz:a.npz")
    with pytest.warns(lf.data.DataWarning, match=words):
        lf.data.from_tensors("mine", (x, y), (x, y), val=5)
    (hint,) = lf.data.find_warnings(data)
    command = "train --arch lenet300 --dataset npz:a.npz --steps 1 --batch-size 8 --engine eager --out r"
    with warnings.catch_warnings():
        warnings.simplefilter("error", lf.data.DataWarning)
        assert main(command.split()) == 0
    assert f"--dataset: {hint}" in capsys.readouterr().err.splitlines()
    assert main(["datasets", "show", "npz:a.npz"]) == 0
    assert hint in capsys.readouterr().out


def test_ordinary_data_get_no_hint() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", lf.data.DataWarning)
        for name in ("digits", "planted"):
            assert lf.data.find_warnings(lf.data.load(name)) == ()
        for targets in (CLASSES, NUMBERS):
            given: Any = (FLOATS, targets)
            lf.data.from_tensors("a", given, given, val=5)
        words = torch.arange(N * 6).view(N, 6) % 9
        lf.data.from_tensors("a", (words, words), (words, words), val=5)


X, Y = torch.from_numpy(FLOATS), torch.from_numpy(CLASSES)
PAIR = (X, Y)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (X, Y, r"train: invalid value: a Tensor of shape \(40, 5\) \(expected a pair \(inputs, targets\)"),
        (PAIR, X, r"test: invalid value: a Tensor of shape \(40, 5\)"),
        (TensorDataset(X, Y), PAIR, "train: invalid value: a TensorDataset .*; lf.data.from_dataset takes a data s"),
        ((X, Y, Y), PAIR, "train: invalid value: a tuple of 3"),
        ((X, None), PAIR, r"train: invalid value: a NoneType \(expected a tensor, an array or lists"),
        (("text", Y), PAIR, "train: invalid value: a str"),
        (PAIR, (X[:, :3], Y), r"test: inputs of shape \(3,\), but those of train have \(5,\)"),
        (PAIR, (X.double(), Y), "test: inputs are float64, but those of train are float32"),
        (PAIR, (X, Y.float()), r"test: targets are numbers \(float32\), but those of train are classes"),
        (PAIR, (X[:5], Y), "test: 5 inputs but 40 targets"),
        ((X[:, 0], Y), (X[:, 0], Y), r"train: inputs of shape \(40,\) have no dimension besides the examples'"),
        ((X > 0, Y), (X > 0, Y), r"train: inputs are bool, but networks need numbers; convert"),
        ((X.to_sparse(), Y), PAIR, "train: inputs are sparse .expected dense real numbers"),
        ((X.to(torch.complex64), Y), PAIR, "train: inputs are complex"),
        ((X, torch.nn.functional.one_hot(Y)), PAIR, r"train: targets are one-hot .*; y\.argmax\(1\) gives them"),
        ((X, Y.to(torch.complex64)), PAIR, "train: targets are complex"),
        ((X, X.double() * 1e300), PAIR, "train: target of example 0 holds .*, too large for float32"),
        ((X, X / 0), (X, X), "train holds numbers that are not finite"),
        ((list(X), Y), PAIR, "inputs but 40 targets|shapes, dtypes or names"),
        (([[1.0], [2.0, 3.0]], [0, 1]), PAIR, "train: a list of 2 cannot be one tensor"),
        ((np.ma.masked_less(FLOATS, 0), Y), PAIR, "train: a masked array has missing values"),
        ((np.array([{}] * N), Y), PAIR, "train: invalid value: an array of object"),
        ((X, np.array(list("abcd") * 10)), PAIR, "train: invalid value: an array of <U1 .*np.unique"),
        ((X[:1], Y[:1]), PAIR, "train: one example is too few to hold some out"),
        (((X, X[:5]), Y), PAIR, "inputs: lengths differ: 40, 5"),
        (((torch.tensor([[2**24 + 1]] * N), X), Y), PAIR, "inputs: 16777217 is a whole number beyond 2\\^24"),
    ],
)  # fmt: skip
def test_mistakes_with_tensors_are_one_line(train: Any, test: Any, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        lf.data.from_tensors("mine", train, test, val=5)
    assert "\n" not in str(caught.value)


def test_arrays_lists_and_columns_of_classes_are_taken() -> None:
    wanted = lf.data.from_tensors("mine", PAIR, PAIR, val=5)
    before = FLOATS.copy()
    given: Any = ((FLOATS, CLASSES), (FLOATS.astype(np.float64), Y[:, None]), (FLOATS.tolist(), CLASSES.tolist()))
    for pair in given:
        data = lf.data.from_tensors("mine", pair, list(pair), val=5)  # type: ignore[arg-type]
        for name in ("train", "val", "test"):
            assert lf.same_bits(getattr(data, name), getattr(wanted, name))
    data.test.x.zero_()
    np.testing.assert_array_equal(FLOATS, before)
    both: Any = ((FLOATS, FLOATS[:, :2]), CLASSES)
    two = lf.data.from_tensors("two", both, both, val=5)
    assert [part.shape for part in two.parts] == [(5,), (2,)]
    assert lf.data.from_tensors("mine", (X.requires_grad_(), Y), PAIR, val=5).train.x.requires_grad is False
    X.requires_grad_(False)


@pytest.mark.parametrize("val", [0, 40, 2.5, True, "5"])
def test_val_is_a_number_of_examples(val: Any) -> None:
    words = r"val: invalid value .* \(expected a number of examples from 1 to 39|val must be a whole number, not"
    with pytest.raises(UserError, match=words):
        lf.data.from_tensors("mine", PAIR, PAIR, val=val)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (lf.Scale(255.0, (0.0,), (0.0,)), None),
        (lf.Scale(255.0, (float("nan"),), (1.0,)), None),
        (lf.Scale(0.0, (0.0,), (1.0,)), None),
        (lf.Scale(1.0, (0.0,), (1.0,) * 5), None),
        (lf.Scale(1.0, (0.0,), (-1.0,)), "scale: std: .* .expected numbers above 0"),
        (lf.Scale(-1.0, (0.0,), (1.0,)), "scale: unit: .* .expected a number above 0, such as 255"),
    ],
)
def test_a_scale_is_one(scale: lf.Scale, words: str | None) -> None:
    words = (
        words or rf"scale must be a Scale of finite numbers, none of unit and std zero.* not {re.escape(str(scale))}"
    )
    with pytest.raises(UserError, match=words):
        lf.data.from_tensors("mine", PAIR, PAIR, val=5, scale=scale)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (TensorDataset(X, Y), r"data: a TensorDataset is not an lthfunc Dataset; lf\.data\.from_tensors\(name, \(inpu"),
        (DataLoader(TensorDataset(X, Y)), r"data: a DataLoader is not an lthfunc Dataset; lf\.data\.from_dataset\(n"),
        ((X, Y), r"data: a tuple of 2 is not an lthfunc Dataset; lf\.data\.from_tensors"),
        (X, r"data: a Tensor of shape \(40, 5\) is not an lthfunc Dataset"),
        (FLOATS, r"data: a ndarray of shape \(40, 5\) is not an lthfunc Dataset; lf\.data\.from_tensors"),
        ("digits", r"data: a name of a data set is not an lthfunc Dataset; lf\.data\.load\('digits'\) loads it"),
        (None, "data: a NoneType is not an lthfunc Dataset"),
        (lf.Dataset("d", lf.Split(X, Y), lf.Split(X, Y[1:]), lf.Split(X, Y), 4), r"data: its val has inputs of shape"),
        (lf.Dataset("d", X, lf.Split(X, Y), lf.Split(X, Y), 4), r"data: its train is a Tens"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_is_no_data_set_is_told_wherever_one_is_taken(data: Any, words: str) -> None:
    model = lf.from_module(torch.nn.Linear(5, 4))
    for call in (
        lambda: lf.train(model, data, optimizer=lf.sgd(0.1), steps=1),
        lambda: lf.make_trainer(model, data, optimizer=lf.sgd(0.1)),
        lambda: lf.accuracy_on(model, lf.init(model), data),
        lambda: lf.sample_batches(data, 5, 1),
        lambda: lf.data.save_mapped("x.safetensors", data),
    ):
        with pytest.raises(UserError, match=words):
            call()


def test_splits_by_name() -> None:
    data = lf.data.from_tensors("mine", PAIR, PAIR, val=5)
    model = lf.from_module(torch.nn.Linear(5, 4))
    with pytest.raises(UserError, match=r"split: invalid value 'valid' \(expected train, val or test"):
        lf.accuracy_on(model, lf.init(model), data, "valid")
    plain = data._replace(train=tuple(data.train))  # type: ignore[arg-type]
    lf.train(model, plain, optimizer=lf.sgd(0.1), steps=1, batch_size=8)(lf.init(model))


OWN = """
import torch
import lthfunc as lf

x, y = torch.randn(60, 5, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 4
split = lf.Split(x, y)


def data(kind="good"):
    if kind == "nan":
        return lf.Dataset("d", split, lf.Split(x / 0, y), split, 4)
    if kind == "label":
        return lf.Dataset("d", split, split, lf.Split(x, y + 1), 4)
    if kind == "width":
        return lf.Dataset("d", split, lf.Split(x[:, :3], y), split, 4)
    if kind == "classes":
        return lf.Dataset("d", split, split, split, 0)
    if kind == "int32":
        return lf.Dataset("d", split, lf.Split(x, y.int()), split, 4)
    if kind == "double":
        return lf.data.from_tensors("d", (x.double(), y), (x.double(), y), val=9)
    if kind == "forgotten":
        return lf.data.from_tensors("d", x, y, val=9)
    if kind == "pair":
        return x, y
    return lf.data.from_tensors("d", (x, y), (x, y), val=9)
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "val holds numbers that are not finite"),
        ("label", "test: target 4 of example 3 is outside the 4 classes, 0 to 3"),
        ("width", "val: inputs of shape (3,), but those of train have (5,)"),
        ("classes", "its classes are 0, not a whole number above 0"),
        ("int32", "val: targets are int32 (expected int64 classes; y.long() converts them)"),
        ("double", "its inputs are float64, and networks take float32 (x.float())"),
        ("forgotten", "train: invalid value: a Tensor of shape (60, 5) (expected a pair (inputs, targets)"),
        ("pair", "a tuple of 2 is not an lthfunc Dataset; lf.data.from_tensors("),
    ],
)
def test_a_function_of_ones_own_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, kind: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    command = f"train --arch lenet300 --dataset own.py:data --dataset-option kind={kind} --steps 1 --batch-size 8"
    assert main([*command.split(), "--out", "r", "--engine", "eager"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("r").exists()


def test_files_of_data_sets_are_checked_too(tmp_path: Path) -> None:
    data = lf.data.from_tensors("mine", PAIR, PAIR, val=5)
    lf.data.save_mapped(tmp_path / "a.safetensors", data)
    assert lf.data.load(str(tmp_path / "a.safetensors")).classes == 4
    about = {"format": "lthfunc.data/1", "name": "mine", "classes": 4, "scale": None, "labels": []}
    tree = {name: getattr(data, name)._asdict() for name in ("train", "val", "test")}
    unlike = {name: {"x": X.double(), "y": Y} for name in tree}
    damage: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({}, {"test": {"x": X[:, :3].contiguous(), "y": Y}}, r"test: inputs of shape \(3,\), but those of train"),
        ({}, {"test": {"x": X, "y": Y + 1}}, "test: target 4 of example 3 is outside the 4 classes"),
        ({"classes": "many"}, {}, "its classes are 'many', not a whole number above 0"),
        ({"scale": {"unit": "x"}}, {}, "is not a complete data set file"),
        ({"scale": {"unit": 1, "mean": [0], "std": [0]}}, {}, "scale: std"),
        ({"counts": [1]}, {}, "is not a complete data set file"),
        ({"labels": ["a"]}, {}, r"labels: invalid value '1 names' \(expected one for each of 4 classes"),
        ({}, {"train": {"x": X}}, "is not a complete data set file .*train/y"),
        ({}, unlike, "its inputs are float64, and networks take float32"),
    ]
    for number, (more, change, words) in enumerate(damage):
        path = tmp_path / f"{number}.safetensors"
        lf.save_tree(path, tree | change, about | more)
        with pytest.raises(UserError, match=words) as caught:
            lf.data.load(str(path))
        assert "\n" not in str(caught.value)


def test_mapped_inputs_are_not_read_for_the_check() -> None:
    split = lf.Split(X / 0, Y)
    data = lf.Dataset("d", split, split, split, 4)
    assert checked_dataset(data._replace(mapped=True)).mapped
    with pytest.raises(UserError, match="not finite"):
        checked_dataset(data)


def test_a_target_that_is_no_class_is_found_whichever_part_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lthfunc.data.content_checks._CHUNK", 64)  # two rows of pixels at a time
    x, y = torch.zeros(7, 1, 2, 2, dtype=torch.uint8), torch.full((7, 2, 2), 255)
    y[3], y[5, 1, 1] = 2, 4
    given: dict[str, Any] = {"val": 1, "scale": lf.Scale(255, (0.0,), (1.0,))}
    assert lf.data.from_tensors("pixels", (x, y), (x, y), classes=5, **given).classes == 5
    with pytest.raises(UserError, match=r"^train: target 4 of example 5 is outside the 4 classes, 0 to 3$"):
        lf.data.from_tensors("pixels", (x, y), (x, y), classes=4, **given)
