"""Timings in turns."""

from __future__ import annotations

import sys

import pytest

from benchmarks.records import saying
from lthfunc.deployment.timing import TimedFunction, in_turn


def test_a_measurement_says_what_it_begins_with(capsys: pytest.CaptureFixture[str]) -> None:
    def calls(name: str) -> TimedFunction:
        return lambda n: print(f"calls of {name}", file=sys.stderr)

    variants = {name: calls(name) for name in ("a", "b")}
    found = in_turn(variants, seconds=1e-9, repeats=2, device="cpu", say=saying("tiny"))
    assert [len(rates) for rates in found.values()] == [2, 2]
    lines = list(dict.fromkeys(capsys.readouterr().err.splitlines()))
    assert lines[:4] == ["tiny: a: first calls", "calls of a", "tiny: b: first calls", "calls of b"]
    assert lines[4:] == ["tiny: turn 1 of 2", "tiny: turn 2 of 2"]
