"""Files whose functions return PyTorch's data sets, or any others, as `--dataset file.py:name` takes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run

import lthfunc as lf
from lthfunc.errors import UserError

FILE = """
import torch
from torch.utils.data import TensorDataset

x = torch.arange(600.0).view(200, 3).sin()
y = (x.sum(1) > 0).long()


def whole():
    return TensorDataset(x, y)


def split():
    return TensorDataset(x[:150], y[:150]), TensorDataset(x[150:], y[150:])


def named(count=150):
    parts = {"train": slice(0, count), "val": slice(count, 175), "test": slice(175, 200)}
    return {name: TensorDataset(x[part], y[part]) for name, part in parts.items()}


def one_by_one():
    yield from zip(x, y)


def pair():
    return x, y
"""


def test_files_may_return_any_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    Path("mine.py").write_text(FILE)
    sizes = {"whole": (160, 20, 20), "split": (135, 15, 50), "named": (150, 25, 25), "one_by_one": (160, 20, 20)}
    found = {}
    for name, wanted in sizes.items():
        found[name] = lf.data.load(f"mine.py:{name}")
        assert tuple(len(split.x) for split in found[name][1:4]) == wanted
        assert found[name].name == name
    assert lf.same_bits(found["whole"].train.y, (found["whole"].train.x.sum(1) > 0).long())
    with pytest.raises(UserError, match="a tuple of 2 is not an lthfunc Dataset"):
        lf.data.load("mine.py:pair")
    small = "--arch lenet300 --steps 30 --rounds 1 --replicates 2 --engine eager --jobs 1"
    named = ["--dataset", "mine.py:named", "--dataset-option", "count=140"]
    assert run("prune", *named, *small.split(), "--out", "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rounds"][0]["replicates"] == 2
    assert run("verify", "run") == 0
