"""Examples in docstrings run, and every public function has the docstring of an API reference."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

import lthfunc as lf

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
WITH_EXAMPLES = [
    path for path in sorted((ROOT / "lthfunc").rglob("*.py")) if re.search(r"^\s*>>> ", path.read_text(), re.MULTILINE)
]
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (lf, lf.data)
    for name in package.__all__
    if inspect.isfunction(getattr(package, name))
}
#: First words of a docstring that say what a function does, so that what it returns is to be said as well.
DOES = {
    "Apply", "Bring", "Build", "Compose", "Compute", "Count", "Decay", "Draw", "Drop", "Fit", "Give", "Grow", "Keep",
    "Let", "Load", "Make", "Makes", "Measure", "Prune", "Put", "Read", "Rewind", "Run", "Save", "Score", "Shift",
    "Take", "Trace", "Train", "Write",
}  # fmt: skip


def examples(path: Path) -> Iterator[doctest.DocTest]:
    """Of every docstring in a file, with the module's own names, `lf`, `torch` and `nn` at hand."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    names = {"lf": lf, "torch": torch, "nn": torch.nn, **vars(module)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            name = getattr(node, "name", module.__name__)
            found = doctest.DocTestParser().get_doctest(text, names, name, str(path), 0)
            if found.examples:
                yield found


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "lthfunc")))
def test_examples_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    with torch.random.fork_rng():
        for each in examples(path):
            runner.run(each, out=said.append)
    assert runner.tries
    assert not runner.failures, "".join(said)


def lacking(function: Any) -> list[str]:
    """What is missing in the docstring of a public function."""
    text, signature = inspect.getdoc(function) or "", inspect.signature(function)
    summary, _, rest = text.partition("\n")
    found = [f"its argument {name}" for name in signature.parameters if not re.search(rf"\b{name}\b", text)]
    if not summary.endswith(".") or rest.partition("\n")[0].strip():
        found.append("a summary of one line")
    returns = signature.return_annotation
    if returns not in (None, "None") and summary.partition(" ")[0] in DOES and "eturns " not in text:
        found.append("what it returns")
    body = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    if any(isinstance(node, ast.Raise) for node in ast.walk(body)) and "Raises" not in text:
        found.append("what it raises")
    if ">>> " not in text:
        found.append("an example")
    return found


def test_public_functions_have_summaries_arguments_returns_raises_and_examples() -> None:
    assert not {name: missing for name, function in PUBLIC.items() if (missing := lacking(function))}
