"""Data that are odd as a whole: one class, classes without training examples, tokens beyond an embedding, constants,
channels in another place, splits of another scale."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lowest import constraints
from lthfunc_cli.main import main

import lthfunc as lf
from lthfunc.errors import UserError

N = 60
X = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
Y = np.arange(N) % 3


def test_one_class_is_nothing_to_tell_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X, y=0 * Y)
    (tmp_path / "a.txt").write_text("a" * 3000)
    for name in ("npz:a.npz", "text:a.txt"):
        kind, _, file = name.partition(":")
        with pytest.raises(UserError, match="all targets are 0; at least two classes are needed"):
            lf.data.load(f"{kind}:{tmp_path / file}")


def test_a_byte_order_mark_is_no_character(tmp_path: Path) -> None:
    text = "hello world " * 200
    (tmp_path / "a.txt").write_text(text, encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text(text, encoding="utf-8")
    marked, plain = (lf.data.load(f"text:{tmp_path / name}") for name in ("a.txt", "b.txt"))
    assert marked.labels == plain.labels == tuple(sorted(set(text)))
    assert lf.same_bits(marked.train, plain.train)


@pytest.mark.parametrize(
    ("arrays", "hint"),
    [
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y + 2}, "no training example is of 2 of the classes in"),
        ({"x": X, "y": np.full((N, 1), 0.5)}, "target number 0 is the same in every training example, so R² is"),
        ({"x": X, "y": np.stack([X[:, 0], 0 * X[:, 0]], 1)}, "target number 1 is the same in every training example"),
    ],
)  # fmt: skip
def test_targets_that_teach_nothing_get_a_hint(tmp_path: Path, arrays: dict[str, Any], hint: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.warns(lf.data.DataWarning):
        data = lf.data.load(f"npz:{tmp_path / 'a.npz'}")
    assert any(each.startswith(hint) for each in lf.data.find_warnings(data)), lf.data.find_warnings(data)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channels_of_pixels_may_come_last(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (N, 8, 7, channels), dtype=np.uint8)
    read = []
    for x in (pixels, pixels.transpose(0, 3, 1, 2)):
        np.savez(tmp_path / "a.npz", x=x, y=Y)
        read.append(lf.data.load(f"npz:{tmp_path / 'a.npz'}"))
    last, first = read
    assert last.shape == (channels, 8, 7)
    assert lf.same_bits(last.train, first.train)


IMAGES = np.random.default_rng(1).random((N, 8, 8, 3)).astype(np.float32)
FIRST = IMAGES.transpose(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("x", "test", "words"),
    [
        (IMAGES, IMAGES, ["inputs of shape (8, 8, 3) are taken as 8 channels of 8×3; where channels come last"]),
        (FIRST, FIRST * 255, ["inputs of test have a mean magnitude of 12"]),
        (FIRST * 255, FIRST, ["inputs of test have a mean magnitude of 0.5"]),
        (FIRST, 2 * FIRST, []),
        (FIRST, 0 * FIRST, []),
    ],
)
def test_inputs_that_lie_in_another_way_get_a_hint(x: Any, test: Any, words: list[str]) -> None:
    labels: Any = Y
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", lf.data.DataWarning)
        found = lf.data.find_warnings(lf.data.from_tensors("mine", (x, labels), (test, labels), val=15))
    assert len(found) == len(said) == len(words)
    assert all(each.startswith(start) for each, start in zip(found, words, strict=True)), found


OWN = """
import torch
import lthfunc as lf

y = torch.arange(90) % 3
tokens = torch.arange(900).view(90, 10) % 7


def pixels():
    x = torch.arange(90 * 64).view(90, 1, 8, 8).byte()
    return lf.data.from_tensors("d", (x, y), (x, y), val=9)


def beyond():
    return lf.data.from_tensors("d", (tokens + 50, tokens), (tokens + 50, tokens), val=9, classes=7)


def below():
    return lf.data.from_tensors("d", (tokens - 1, tokens), (tokens, tokens), val=9, classes=7)


def within():
    return lf.data.from_tensors("d", (tokens, tokens), (tokens, tokens), val=9, classes=7)
"""


@pytest.mark.parametrize(
    ("name", "arch", "words"),
    [
        (
            "pixels",
            "lenet300",
            "not on tokens of shape (1, 8, 8); x.float(), or a scale, makes numbers of whole",
        ),
        (
            "beyond",
            "char-transformer",
            "cannot take tokens from 50 to 56 in characters, Embedding(7, 128): index out",
        ),
        ("below", "char-transformer", "cannot take tokens from -1 to 6"),
        ("within", "char-transformer", None),
    ],
)
def test_tokens_that_no_embedding_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, name: str, arch: str, words: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    assert main(["datasets", "show", f"own.py:{name}"]) == 0
    assert "tokens for an embedding" in capsys.readouterr().out
    command = f"train --arch {arch} --dataset own.py:{name} --steps 1 --batch-size 2 --engine eager --out run"
    assert main(command.split()) == (2 if words else 0)
    if words:
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


def test_inputs_of_float64_get_a_hint() -> None:
    x, y = torch.from_numpy(X).double(), torch.from_numpy(Y)
    with pytest.warns(lf.data.DataWarning, match=r"inputs are float64, .*; x\.float\(\) converts them"):
        lf.data.from_tensors("d", (x, y), (x, y), val=9)


def test_lowest_versions_are_those_declared() -> None:
    declared = """
[project]
name = "mine"
dependencies = ["a>=1.2", "b[extra]>=3; python_version < '3.11'", "a>=2"]
optional-dependencies.dev = ["c.d-e>=0.1.2", "mine[more]"]
"""
    assert constraints(declared) == ["a==1.2", "b==3 ; python_version < '3.11'", "c.d-e==0.1.2"]
    with pytest.raises(ValueError, match="'f' declares no lowest version"):
        constraints(declared.replace('"a>=2"', '"f"'))
