"""A few of the kills of `kill.py`, which has the command for many."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kills"), [([], 4), pytest.param(["--method", "rigl"], 3, marks=pytest.mark.long)], ids=["imp", "rigl"]
)
def test_a_run_killed_at_many_moments_ends_in_the_same_bits(method: list[str], kills: int, tmp_path: Path) -> None:
    """A process of its own, since it forks, which a process with threads must not."""
    command = [sys.executable, str(Path(__file__).parent / "kill.py"), "--kills", str(kills), "--seed", "1", *method]
    done = subprocess.run(
        [*command, "--json", str(tmp_path / "outcomes.json")], capture_output=True, text=True, check=False, timeout=HANG
    )
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())
    assert len(outcomes) >= kills
    assert all(each["same"] and each["clean"] for each in outcomes)
    assert len({each["where"] for each in outcomes}) >= min(3, kills)
