"""Which tests a mutant runs, and in which order."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable
from pathlib import Path

from covering import Covering, table_of
from mutants import Mutant

#: Processor seconds of a test that is run before others of its file.
_QUICK = 1.0


def tests_for(root: Path, mutant: Mutant, tests: dict[str, Covering], budget: float) -> tuple[list[str], str]:
    """(tests in the order in which they are run, what of the mutant they run: its line, function or file).

    Of tests that were traced before the file was changed, those that ran the function may run a line that is new.
    What a file does as it is imported is run by no test: those come first whose own file names what is defined there,
    then those that run a line that names it.
    """
    table = table_of(root, mutant.file)
    lines, changed = set(table[mutant.first - 1 : mutant.last]), (root / mutant.file).stat().st_mtime
    named = _named_by(root, mutant)
    naming = {name for name in tests if named & _words_in(root / name.partition("::")[0])}

    def ran_function(test: Covering) -> bool:
        return any((each.file, each.where) == (mutant.file, mutant.where) for each in test.lines)

    runs: dict[str, Callable[[str, Covering], bool]] = {
        "line": lambda name, test: (
            name in naming or bool(lines & test.lines) or (test.traced < changed and ran_function(test))
        ),
        "function": lambda name, test: ran_function(test),
        "file": lambda name, test: name in naming or any(
            each.file == mutant.file or named & _words_of(each.code) for each in test.lines
        ),
    }  # fmt: skip
    for what, does in list(runs.items())[list(runs).index(mutant.runs) :]:
        fitting = {name: test.seconds for name, test in tests.items() if does(name, test)}
        if not fitting:
            continue
        # Quick ones by file, so that files are not gone back and forth between, then the others.
        later = {name for name in fitting if (name in naming) != (what == "file")}
        later = {name for name in later if what == "file" or not lines & tests[name].lines}
        order = sorted(
            fitting, key=lambda name: (name in later, fitting[name] > _QUICK, _first(name, fitting), fitting[name])
        )
        budget *= 3 if what == "file" else 1  # of which most have nothing to do with it
        chosen, spent = list[str](), 0.0
        for name in order:
            spent += fitting[name]
            if chosen and spent > budget:
                break
            chosen.append(name)
        return chosen, what
    return [], "nothing"


def _named_by(root: Path, mutant: Mutant) -> frozenset[str]:
    """The names that a statement outside of functions defines: a class's fields with the class itself.

    Of a function those that are defined by calling it, as the file is imported.
    """
    tree = ast.parse((root / mutant.file).read_text(encoding="utf-8"))
    function = mutant.where.partition(".")[0]
    found: set[str] = set()
    for statement in tree.body:
        if mutant.runs == "file":
            mine = statement.lineno <= mutant.first <= (statement.end_lineno or statement.lineno)
        else:
            mine = not isinstance(statement, (ast.FunctionDef, ast.ClassDef)) and function in _names(
                statement, ast.Load
            )
        if mine:
            found |= {statement.name} if isinstance(statement, ast.ClassDef) else _defined(statement)
    return frozenset(found)


def _defined(statement: ast.stmt) -> set[str]:
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return set().union(*(_names(each, ast.Store) for each in targets if each is not None))


def _names(node: ast.AST, use: type[ast.expr_context]) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, use)}


@functools.cache
def _words_of(code: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", code))


@functools.cache
def _words_in(path: Path) -> frozenset[str]:
    return _words_of(path.read_text(encoding="utf-8"))


def _first(name: str, fitting: dict[str, float]) -> tuple[float, str]:
    file = name.partition("::")[0]
    if fitting[name] > _QUICK:
        return fitting[name], name
    return min(seconds for other, seconds in fitting.items() if other.startswith(file + "::")), file
