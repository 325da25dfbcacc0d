"""The README does what it says. Its commands are run with those of docs/, by test_documentation.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from documentation import blocks

import lthfunc as lf

EXAMPLE = blocks("README.md", "python")[0]


def test_the_example_has_at_most_twenty_lines_and_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    statements = [line for line in EXAMPLE.splitlines() if line.strip() and not line.startswith("import")]
    assert len(statements) <= 20
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    for line in lines:
        assert float(re.findall(r"\d\.\d+", line)[0]) > (0.9 if "magnitude" in line else 0.75)
        assert line.endswith("Count(kept=925, total=7400)")  # an eighth
    ticket, _ = lf.load_ticket(tmp_path / "ticket.safetensors")
    assert lf.count(ticket.masks) == (925, 7_400)


def test_continuous_integration_runs_the_readmes_test_line() -> None:
    lines = [
        line for block in blocks("README.md", "sh") for line in block.splitlines() if line.endswith("&& pytest -n 2")
    ]
    assert len(lines) == 1
    assert '"&& pytest"' in (ROOT / ".ci" / "run").read_text()


def test_the_example_is_that_of_the_site() -> None:
    assert blocks("docs/how-to/python.md", "python")[0] == EXAMPLE


def test_it_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
