"""Which tests run which lines, found out by running each file of tests once under a trace."""

from __future__ import annotations

import ast
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Line(NamedTuple):
    """A line by what stands on it, so that it is found again where others were put above it."""

    file: str
    where: str
    code: str


class Covering(NamedTuple):
    """A test: its processor time, that of processes it started included, what it ran, and when that was found out."""

    seconds: float
    lines: frozenset[Line]
    traced: float


class Recorder:
    """A plugin: one JSON line per test that passed."""

    def __init__(self, overlay: Path, packages: tuple[str, ...], out: Path) -> None:
        self._places = tuple(str(overlay / package) for package in packages)
        self._prefix = len(str(overlay)) + 1
        self._out = out
        self._hits: set[tuple[str, int]] = set()
        self._passed = True

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        self._hits, self._passed, begun = set(), True, sum(os.times()[:4])
        threading.settrace(self._called)
        sys.settrace(self._called)
        yield
        sys.settrace(None)
        threading.settrace(None)
        if self._passed:
            lines: dict[str, list[int]] = {}
            for file, line in self._hits:
                lines.setdefault(file[self._prefix :], []).append(line)
            with self._out.open("a", encoding="utf-8") as out:
                json.dump({"test": item.nodeid, "seconds": sum(os.times()[:4]) - begun, "lines": lines}, out)
                out.write("\n")

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._passed &= report.passed

    def _called(self, frame: Any, event: str, argument: Any) -> Any:
        return self._ran if frame.f_code.co_filename.startswith(self._places) else None

    def _ran(self, frame: Any, event: str, argument: Any) -> Any:
        if event == "line":
            self._hits.add((frame.f_code.co_filename, frame.f_lineno))
        return self._ran


def keep(raw: Path, library: Path, out: Path) -> None:
    """Write down what a recorder wrote, with lines by what stands on them; `library`: what it was recorded of."""
    tables: dict[str, list[Line]] = {}
    places: dict[Line, int] = {}
    tests = {}
    for text in raw.read_text(encoding="utf-8").splitlines() if raw.exists() else ():
        item = json.loads(text)
        lines = []
        for file, numbers in item["lines"].items():
            table = tables.setdefault(file, table_of(library, file))
            lines += [places.setdefault(table[number - 1], len(places)) for number in numbers]
        tests[item["test"]] = [round(item["seconds"], 3), lines]
    out.write_text(json.dumps({"lines": list(places), "tests": tests}, ensure_ascii=False), encoding="utf-8")


def kept(out: Path) -> dict[str, Covering]:
    """What `keep` wrote."""
    found = json.loads(out.read_text(encoding="utf-8"))
    lines = [Line(*each) for each in found["lines"]]
    return {
        name: Covering(seconds, frozenset(lines[number] for number in numbers), out.stat().st_mtime)
        for name, (seconds, numbers) in found["tests"].items()
    }


def table_of(root: Path, file: str) -> list[Line]:
    """Each line of a file."""
    text = (root / file).read_text(encoding="utf-8")
    lines = text.splitlines()
    where = [""] * len(lines)

    def name(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = outer
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
                inner = f"{outer}.{child.name}".lstrip(".")
                for number in range(child.lineno - 1, child.end_lineno or child.lineno):
                    where[number] = inner
            name(child, inner)

    name(ast.parse(text), "")
    return [Line(file, function, code.strip()) for function, code in zip(where, lines, strict=True)]
