"""The house rules, checked by the tools that know them."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import lthfunc

TOOLS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["mypy", "lthfunc", "cli"],
    "types of tests": ["mypy"],
    "imports": ["lint-imports"],
    "kernels": ["clang-format", "--dry-run", "--Werror", *map(str, (ROOT / "lthfunc/sparse/kernels").glob("*.[ch]*"))],
}


@pytest.mark.parametrize(
    "tool", [pytest.param(tool, marks=pytest.mark.long) if tool == "types of tests" else tool for tool in TOOLS]
)
def test_tools_find_nothing(tool: str) -> None:
    name, *arguments = TOOLS[tool]
    command = [str(Path(sys.executable).parent / name), *arguments]
    if not Path(command[0]).exists():
        pytest.skip(f"{name} is not installed")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["lthfunc", "lthfunc.data", "lthfunc.models"])
def test_tables_of_contents_agree_with_their_imports(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    aliases = [alias for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    exported_again = {alias.name for alias in aliases if alias.asname == alias.name}
    networks = {name.replace("-", "_") for name in vars(module).get("NETWORKS", ())}
    assert exported_again | networks == set(module.__all__)
    submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
    for name in module.__all__:
        exported = getattr(module, name)
        # A function named like a submodule would be hidden by it after the first import.
        assert (name in submodules) == (type(exported) is type(ast)), name
        assert package == "lthfunc" or name not in submodules, name


def test_the_newest_changes_are_this_version_s() -> None:
    found = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found
    assert found[1] == lthfunc.__version__


def test_public_functions_say_what_they_do() -> None:
    """A method that overrides one with a docstring needs none."""
    trees = {path: ast.parse(path.read_text()) for room in ("lthfunc", "cli") for path in (ROOT / room).rglob("*.py")}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    documented = {
        (each.name, node.name)
        for each in classes for node in each.body if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }  # fmt: skip
    overriding = {
        node
        for each in classes for node in each.body for base in each.bases
        if isinstance(node, ast.FunctionDef) and (ast.unparse(base).rpartition(".")[2], node.name) in documented
    }  # fmt: skip
    for path, tree in trees.items():
        assert ast.get_docstring(tree), path
        hidden = {
            node
            for outer in ast.walk(tree)
            if isinstance(outer, ast.FunctionDef) or (isinstance(outer, ast.ClassDef) and outer.name[0] == "_")
            for node in ast.walk(outer) if node is not outer
        }  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node not in hidden | overriding:
                public = not node.name.startswith("_") and "forward" not in node.name
                assert not public or ast.get_docstring(node), f"{path}: {node.name}"


def test_files_have_one_subject() -> None:
    """None is longer than 300 lines, tables of contents apart."""
    for room in ("lthfunc", "cli", "benchmarks", "tests"):
        for path in (ROOT / room).rglob("*.py"):
            assert path.name == "__init__.py" or len(path.read_text().splitlines()) <= 300, path
