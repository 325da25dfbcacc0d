"""Which lines about GPUs the tests run on a machine without one: `python tests/gpu_lines.py [TESTS…]`.

Counted are statements in functions that name CUDA, those that run only where a condition that names it holds, and all
of the files that are for GPUs alone. It prints those that no test ran, and the share that was. Without arguments the
tests that pretend GPUs are run, under a trace, which takes some minutes.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "mutation")]

from covering import Recorder  # noqa: E402

PACKAGES = ("lthfunc", "cli", "benchmarks")
#: Files that are for GPUs alone.
WHOLE = (
    "lthfunc/energy/gpus.py",
    "lthfunc/scheduling/gpu_memory.py",
    "lthfunc/training/engines/reused_memory.py",
    "lthfunc/training/engines/evaluation_graphs.py",
)
#: What tests that pretend GPUs, or settings with one, are known by.
_SPEAKING = re.compile(r"gpus: Machine|pretended|setattr\(torch\.cuda|device(\"?: |=)\"cuda")


class Statement(NamedTuple):
    """Of a file: its first line, and the last of those that show it ran."""

    first: int
    last: int


def statements_of(file: Path) -> list[Statement]:
    """Those of a file that count."""
    text = file.read_text(encoding="utf-8")
    whole = file.relative_to(ROOT).as_posix() in WHOLE
    return list(_counted(ast.parse(text), inside=False, counts=whole))


def _counted(node: ast.AST, *, inside: bool, counts: bool) -> Iterator[Statement]:
    """inside: a function; counts: whatever it names."""
    for name, field in ast.iter_fields(node):
        left = False  # whether whoever has no GPU has left before
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST):
                continue
            body = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and name == "body"
            here = inside or body
            only = counts or left
            only |= isinstance(node, ast.If) and name != "test" and _only_on_gpus(node.test, otherwise=name == "orelse")
            if here and isinstance(child, ast.stmt) and not _is_text(child) and (only or _names_cuda(child)):
                yield Statement(child.lineno, _head(child))
            yield from _counted(child, inside=here, counts=only)
            if isinstance(child, ast.If) and isinstance(child.body[-1], (ast.Return, ast.Raise)):
                left |= _only_on_gpus(child.test, otherwise=True)


def _is_text(node: ast.stmt) -> bool:
    """A docstring, or a definition, which runs where it stands."""
    constant = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return constant or isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom))


def _head(node: ast.stmt) -> int:
    """The last line of a statement, or of what stands before the statements in it."""
    bodies = [part.lineno for name in ("body", "handlers") for part in getattr(node, name, [])]
    return max(node.lineno, min(bodies) - 1) if bodies else node.end_lineno or node.lineno


def _names_cuda(node: ast.stmt) -> bool:
    """Whether a statement does, without the statements in it."""
    inner = {id(each) for name in ("body", "orelse", "finalbody", "handlers") for each in getattr(node, name, [])}

    def found(part: ast.AST) -> bool:
        if id(part) in inner:
            return False
        words = [getattr(part, name, None) for name in ("id", "attr", "value", "arg")]
        if any(isinstance(word, str) and "cuda" in word.lower() for word in words):
            return True
        return any(map(found, ast.iter_child_nodes(part)))

    return found(node)


def _only_on_gpus(test: ast.expr, *, otherwise: bool) -> bool:
    """Whether a condition holds on GPUs alone; otherwise: whether it doesn't."""
    text = ast.unparse(test)
    if "cuda" not in text or " or " in text:
        return False
    negative = "!=" in text or text.startswith("not ") or "is None" in text
    return negative == otherwise


def main(arguments: list[str]) -> int:
    """Run tests, print what they leave out; returns 1 below the share that is promised, else 0."""
    tests = arguments or [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if _speaks(path)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "lines"
        pytest.main(
            ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not slow and not gpu", *tests],
            plugins=[Recorder(ROOT, PACKAGES, out)],
        )
        ran: dict[str, set[int]] = {}
        for line in out.read_text(encoding="utf-8").splitlines():
            for file, numbers in json.loads(line)["lines"].items():
                ran.setdefault(file, set()).update(numbers)
    seen = total = 0
    for file in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        name, lines = file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8").splitlines()
        for statement in statements_of(file):
            total += 1
            if ran.get(name, set()) & set(range(statement.first, statement.last + 1)):
                seen += 1
            else:
                print(f"{name}:{statement.first}: {lines[statement.first - 1].strip()}")
    print(f"{seen} of {total} statements about GPUs were run: {seen / total:.1%}")
    return int(seen / total < PROMISED)


def _speaks(path: Path) -> bool:
    return _SPEAKING.search(path.read_text(encoding="utf-8")) is not None


#: The share that is promised.
PROMISED = 0.85

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
