"""The benchmark of few sequences: its rates, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sparse_programs import kernels  # noqa: F401

from benchmarks import sequences
from benchmarks.floors import PEAK
from lthfunc.errors import UserError
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.mark.parametrize("training", [False, True])
def test_rates_are_recorded_for_each_number_of_sequences(
    training: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sequences, "_SIDE", 16)  # for a large product takes its time
    sizes = ["--width", "8", "--layers", "1", "--length", "5", "--repeats", "2", "--density", "0.5"]
    sequences.main([*sizes, *["--training"] * training, "--json", str(tmp_path / "found.json")])
    records = json.loads((tmp_path / "found.json").read_text())["records"]
    assert [(each["engine"], each["sequences"]) for each in records] == [
        *((sequences.TRAINING if training else sequences.PROGRAM, count) for count in (1, 2, 4, 8, 16)), (PEAK, 16),
    ]  # fmt: skip
    assert all(each["unit"] == "sequences/s" and each["min"] > 0 for each in records)
    told = capsys.readouterr()
    assert "as fast as with lanes of examples" in told.out
    assert "density 0.5: turn 2 of 2" in told.err


@pytest.mark.parametrize("option", ["--length", "--width", "--layers", "--repeats"])
def test_mistakes_are_one_line(option: str) -> None:
    with pytest.raises(UserError, match=f"{option}: invalid value 0"):
        sequences.main([option, "0"])
