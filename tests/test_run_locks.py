"""Runs under locks and on full disks; commands typed again, branches and transfers."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import run, until
from test_runs import SMALL, metrics, same_files
from test_survival import (
    a_damaged_run,  # noqa: F401
    a_finished_run,  # noqa: F401
    files_of,
    said,
)

from lthfunc.errors import UserError
from lthfunc.runs.folder import read_run
from lthfunc.runs.lock import holder, is_held, locked
from lthfunc.runs.store import save_training
from lthfunc.runs.verification import verified


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused_and_a_dead_ones_lock_taken_over(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "lthfunc_cli", "prune", "--rounds", "5", "--steps", "4000", "--engine", "eager"]
    with subprocess.Popen([*command, "--out", str(folder)], stderr=subprocess.DEVNULL) as process:
        until((folder / "environment.jsonl").exists, process)
        assert is_held(folder)
        for again in (["resume", folder], ["prune", *SMALL, "--out", folder]):
            assert run(*again) == 2
        refused, other = said(capsys)
        assert re.search(rf"process {process.pid} on \S+ \(since .*\) is working on it", refused)
        assert "holds another run" in other
        process.kill()
        process.wait()
    about = holder(folder)
    assert about is not None
    assert about["pid"] == process.pid  # what is left of it
    assert not is_held(folder)
    with locked(folder):
        assert is_held(folder)
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(folder):
            pass
    assert not is_held(folder)


def limited(command: list[str], size: int) -> subprocess.CompletedProcess[str]:
    """A command in a process that may write no file of more than `size` bytes, as on a disk that fills."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return subprocess.run(
        [sys.executable, "-m", "lthfunc_cli", *command], capture_output=True, text=True, preexec_fn=limit, check=False
    )


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_finished_stays(damaged: Path, finished: Path) -> None:
    lines = (damaged / "metrics.jsonl").read_text().splitlines(keepends=True)
    (damaged / "metrics.jsonl").write_text("".join(lines[:3]))
    before = {name: (damaged / name).read_bytes() for name in files_of(damaged)}
    size = 100_000  # within the params
    done = limited(["resume", str(damaged)], size)
    assert done.returncode == 3, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("lthfunc: ")]
    assert len(told) == 1
    assert "File too large; finished results are kept" in told[0]
    assert "Traceback" not in done.stderr
    assert str(damaged) in told[0]
    assert not list(damaged.rglob("*.unfinished"))
    for name, payload in before.items():
        now = (damaged / name).read_bytes()
        assert now.startswith(payload) if name.endswith(".jsonl") else now == payload, name
    assert run("resume", damaged) == 0
    assert metrics(damaged) == metrics(finished)
    same_files(damaged, finished)


def test_a_folder_that_vanishes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import lthfunc.scheduling.execute as execute

    def save(folder: Path, *given: Any, **named: Any) -> None:
        shutil.rmtree(folder)
        save_training(folder, *given, **named)

    monkeypatch.setattr(execute, "save_training", save)
    assert run("prune", *SMALL, "--out", tmp_path / "run") == 3
    told = [line for line in said(capsys) if line.startswith("lthfunc: ")]
    assert len(told) == 1
    assert str(tmp_path / "run") in told[0]
    assert "No such file or directory" in told[0]


def test_a_folder_that_cannot_be_written_is_one_line(damaged: Path, capsys: Any) -> None:
    """A read-only file system: nothing in it changes, and reading goes on as before."""
    mounted = subprocess.run(
        ["mount", "--bind", "-o", "ro", str(damaged), str(damaged)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a read-only mount takes a privilege that is not here")
    try:
        assert run("verify", damaged) == 0
        assert run("info", damaged) == 0
        capsys.readouterr()
        assert run("resume", damaged) == 3
        (line,) = said(capsys)
        assert "Read-only file system" in line
        assert run("prune", *SMALL, "--out", damaged / "new") in (2, 3)
        (line,) = said(capsys)
        assert str(damaged) in line
    finally:
        subprocess.run(["umount", str(damaged)], check=True)


def test_typing_the_command_again_offers_to_go_on(
    damaged: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["prune", *SMALL, "--control", "reinit", "--rewind", "step:10"]
    lines = (damaged / "metrics.jsonl").read_text().splitlines(keepends=True)
    (damaged / "metrics.jsonl").write_text("".join(lines[:3]))
    shutil.move(damaged, tmp_path / "runs" / "earlier")
    earlier = tmp_path / "runs" / "earlier"
    # Nobody to ask: it is said, and a run of its own begins; in its folder it is refused.
    assert run(*command) == 0
    told = "found an unfinished run with these settings; resume it with: lthfunc resume runs/earlier"
    assert told in said(capsys)
    assert run(*command, "--out", earlier) == 2
    assert "or resume it with: lthfunc resume" in said(capsys)[-1]
    assert run(*command, "--rate", "0.3") == 0
    assert told not in said(capsys)
    # With somebody to ask.
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda question, **given: "runs/earlier is an unfinished run" in question)
    assert run(*command) == 0
    assert metrics(earlier) == metrics(finished)
    same_files(earlier, finished)


def test_branches_and_transfers_are_runs_like_any_other(finished: Path, tmp_path: Path, capsys: Any) -> None:
    """They verify, and are mended: a branch copies what is whole, a transfer's trainings stand for themselves."""
    branched, moved = tmp_path / "branched", tmp_path / "moved"
    assert run("branch", finished, "--from-round", "1", "--rounds", "2", "--lr", "0.002", "--out", branched) == 0
    assert run("transfer", finished, "--dataset", "digits", "--steps", "12", "--control", "reinit", "--out", moved) == 0
    for folder in (branched, moved):
        assert run("verify", folder) == 0
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        harmed = copy / "seed0" / "round01" / "params.safetensors"
        harmed.write_bytes(harmed.read_bytes()[:-3])
        assert run("info", copy) == 0
        assert "damaged: seed0/round01/params.safetensors: has" in capsys.readouterr().out
        assert run("verify", copy) == 3
        assert run("resume", copy) == 0
        same_files(copy, folder)
        assert run("verify", copy) == 0
        shutil.rmtree(copy)


def test_a_branch_whose_source_is_gone_is_not_trained_with_other_settings(
    finished: Path, damaged: Path, tmp_path: Path, capsys: Any
) -> None:
    """Its first rounds are the source's: a line of them that is lost can only come from there."""
    branched = tmp_path / "branched"
    assert run("branch", damaged, "--from-round", "1", "--rounds", "2", "--lr", "0.002", "--out", branched) == 0
    lines = (branched / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(branched, tmp_path / "whole")
    assert run("resume", branched) == 0
    (branched / "metrics.jsonl").write_bytes(
        b"".join([*lines[:2], lines[2].replace(b"ticket", b"tickets"), *lines[3:]])
    )
    shutil.move(damaged, tmp_path / "gone")
    assert run("resume", branched) == 3
    assert "round 1 of seed 0 cannot be copied from" in said(capsys)[-1]
    shutil.move(tmp_path / "gone", damaged)
    assert run("resume", branched) == 0
    same_files(branched, tmp_path / "whole")
    assert not verified(branched).problems


def test_a_run_that_diverges_says_how_to_go_on_and_does(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    options = ["--rounds", "1", "--steps", "12", "--eval-every", "4", "--optimizer", "sgd", "--engine", "eager"]
    assert run("prune", *options, "--lr", "1e38", "--out", folder) == 2
    (line,) = [line for line in said(capsys) if line.startswith("lthfunc: ")]
    assert re.search(r"seed 0, round 0: training diverged: the (loss \(\w+\)|gradient) of step \d+ is not finite, "
                     r"learning rate 1e\+38; ", line)  # fmt: skip
    assert f"the state before it is saved; to skip such steps: lthfunc resume {folder} --on-nonfinite skip" in line
    assert run("verify", folder) == 0
    assert len(list(folder.glob("seed0/round00/checkpoint-*"))) == 1
    assert run("resume", folder, "--on-nonfinite", "skip") in (0, 2)
    assert read_run(folder)[1].on_nonfinite == "skip"
