"""A few of the kills of `kill.py`, which has the command for many."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kill
import pytest
from conftest import HANG, run
from outcomes import Outcome, difference

from lthfunc.catalog.methods import METHODS


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


@pytest.mark.parametrize("other", [None, "cht"])
def test_each_method_of_the_table_has_a_line_and_one_that_ends_otherwise_the_exit_code(
    other: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    asked: dict[str, tuple[int, Any]] = {}

    def study(kills: int, seed: int, folder: Path, arguments: list[str], kinds: Any, tell: Any) -> list[Outcome]:
        folder.mkdir()
        name, engine = (arguments[arguments.index(option) + 1] for option in ("--method", "--engine"))
        assert engine == "sparse"
        asked[name] = kills, kinds
        return [Outcome("within a training", "training", name != other, True, "masks" * (name == other))] * kills

    monkeypatch.setattr(kill, "study", study)
    monkeypatch.setattr(kill, "prepare_forks", lambda folder: None)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    command = ["--method", "all", "--kills", "3", "--engine", "sparse", "--json", str(tmp_path / "found.json")]
    assert kill.command(command) == (other is not None)
    assert asked == dict.fromkeys(METHODS, (3, ("training",)))
    out, err = capsys.readouterr()
    for name in METHODS:
        same = 0 if name == other else 3
        assert f"{name}: 3 kills, {3 - same} bad\n" in err
        assert f"| {name} | 3 | {same} | 3 |\n" in out
    assert [each["method"] for each in json.loads((tmp_path / "found.json").read_text())[::3]] == list(METHODS)


def test_a_run_that_differs_is_told_by_what(tmp_path: Path) -> None:
    one = tmp_path / "one"
    command = ["prune", "--method", "random-erk", "--density", "0.2", "--steps", "4", "--batch-size", "20"]
    assert run(*command, "--engine", "eager", "--out", one) == 0

    def changed(how: Any) -> str:
        shutil.copytree(one, tmp_path / "other")
        how(tmp_path / "other")
        found = difference(tmp_path / "other", one)
        shutil.rmtree(tmp_path / "other")
        return found

    (masks,) = (path.relative_to(one) for path in one.rglob("masks.safetensors"))
    lines = (one / "metrics.jsonl").read_text()
    assert changed(lambda place: None) == ""
    assert changed(lambda place: (place / masks).write_bytes((one / masks).read_bytes()[:-1] + b"?")) == str(masks)
    assert changed(lambda place: (place / masks).unlink()) == f"files {[str(masks)]}"
    assert changed(lambda place: (place / "a.unfinished").touch()).endswith("a.unfinished")
    assert changed(lambda place: (place / "metrics.jsonl").write_text(lines.splitlines()[0] + "\n")) == "records"
