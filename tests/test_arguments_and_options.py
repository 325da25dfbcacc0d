"""Messages of functions name arguments, which commands name by their options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from lthfunc_cli.main import main
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError

#: Packages whose functions are called in Python.
PACKAGES = ("trees", "distributed", "sparsify", "training", "sparse", "deployment", "loops", "data", "models")
#: What names options of other commands.
OTHERS = ("--version", "lthfunc import --max-size SIZE raises it")


def words(tree: ast.AST) -> Iterator[ast.Constant]:
    """The texts of a file that are no docstrings."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            body[0].value.value = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_names_an_option(package: str) -> None:
    files = list((ROOT / "lthfunc" / package).rglob("*.py"))
    named = {
        f"{path.relative_to(ROOT)}: {text.value!s}"
        for path in files
        for text in words(ast.parse(path.read_text(encoding="utf-8")))
        if re.search(r"(^|[\s(\"'])--[a-z]", str(text.value)) and str(text.value) not in OTHERS
    }
    assert files
    assert not named


class Odd(nn.Module):
    """A network that the sparse engine has no rule for."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x.flatten(1).cumsum(1))


def test_a_function_says_engine_and_a_command_says_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data, model = lf.data.load("digits"), lf.from_module(Odd(), warn=False)
    with pytest.raises(UserError, match=r"^engine: sparse has no rule for cumsum .*; the engine compile runs it$"):
        lf.train(model, data, optimizer=lf.sgd(0.1), steps=1, engine=lf.sparse_engine)(lf.init(model))
    monkeypatch.chdir(tmp_path)
    own = f"{Path(__file__)}:Odd"
    assert main(["prune", "--arch", own, "--dataset", "digits", "--engine", "sparse", "--out", "run"]) == 2
    assert capsys.readouterr().err.startswith("lthfunc: --engine: sparse has no rule for cumsum ")
    assert not Path("run").exists()
