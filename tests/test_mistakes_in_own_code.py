"""Functions of one's own in the place of others: a line that names the option and what is accepted, and no run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from documentation import blocks
from lthfunc_cli.main import main

BASE = "prune --steps 4 --rounds 1 --engine eager --arch mine.py:Net --dataset mine.py:data --out run"
MISTAKES = {
    "--dataset-option size=3": "--dataset: 'mine.py:data': val: invalid value 0 (expected a number of examples from",
    "--loss mine.py:centred": "--loss: invalid value 'mine.py:centred' (expected a function of (outputs, targets), or",
    "--metric mine.py:centred": "--metric: invalid value 'mine.py:centred' (expected a function of (outputs, targets)",
    "--metric mine.py:data": "--metric: invalid value 'mine.py:data' (expected a function of (outputs, targets))",
    "--optimizer mine.py:margin": "--optimizer: 'mine.py:margin' needs outputs, targets; it is offered lr, schedule",
    "--schedule mine.py:margin": "(expected a table of rates, such as lf.cosine(lr, steps), or what makes it of lr, st",
    "--engine mine.py:data": "--engine: invalid value 'mine.py:data' (expected an engine's name, or a function",
    "--engine mine.py:margin": "--engine: invalid value 'mine.py:margin' (expected an engine's name, or a function",
    "--arch mine.py:margin": "shape, classes, input_shape, num_classes, shapes, and options such as outputs=VALUE",
    "--score mine.py:margin": "--score: invalid value 'mine.py:margin' (expected a function of (params, masks), or",
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line(typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(blocks("docs/how-to/own-code.md", "python")[0])
    assert main([*BASE.split(), *typed.split()]) == 2
    error = capsys.readouterr().err
    assert MISTAKES[typed] in error
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()
