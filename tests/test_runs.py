"""Run folders through the command line: contents, reproduction, interruption, resumption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HANG, run, until

import lthfunc as lf
from lthfunc.runs.checkpoints import step_of
from lthfunc.runs.folder import read_run
from lthfunc.runs.lock import locked
from lthfunc.scheduling.progress import progress

#: A small but whole experiment on the bundled digits.
SMALL = ["--rounds", "2", "--steps", "40", "--eval-every", "10", "--batch-size", "50"]


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what may differ between equal runs: times, and so the lines' checksums."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "sha256")} for line in lines]


def same_files(left: Path, right: Path, but: str | None = None, without: Collection[str] = ()) -> None:
    """The same safetensors files, to the byte; with `but`, to the bits of their tensors, that header entry apart."""
    names = sorted({str(path.relative_to(left)) for path in left.rglob("*.safetensors")} - {*without})
    assert names == sorted({str(path.relative_to(right)) for path in right.rglob("*.safetensors")} - {*without})
    assert names
    for name in names:
        if but is None:
            assert (left / name).read_bytes() == (right / name).read_bytes(), name
            continue
        (ours, about), (theirs, also) = lf.load_tree(left / name), lf.load_tree(right / name)
        assert lf.same_bits(ours, theirs), name
        assert {**about, but: None} == {**also, but: None}, name


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, drawn: None) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run("prune", *SMALL, "--replicates", "2", "--control", "reinit", "--rewind", "step:10", "--out", folder) == 0
    return folder


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "config.toml", "metrics.jsonl", "environment.jsonl", ".lock", "winning_ticket.safetensors",
        "winning_ticket_trained.safetensors", "last_round.safetensors",
        "accuracy_vs_density.png", "training_curves.png", "training_time.png", "seed0", "seed1",
    }  # fmt: skip
    assert {path.name for path in (finished / "seed1").iterdir()} == {
        "anchor.safetensors", "winning_ticket.safetensors", "winning_ticket_trained.safetensors",
        "last_round.safetensors", "round00", "round01", "round01-reinit", "round02", "round02-reinit",
    }  # fmt: skip
    about, config, records = read_run(finished)
    assert about["machine"]["torch"]
    assert config.replicates == 2
    assert len(records) == 10


def test_the_winning_ticket_is_its_rounds_masks_on_the_anchors_weights(finished: Path) -> None:
    for ticket_file, seed in (
        (finished / "winning_ticket.safetensors", 0),
        (finished / "seed1" / "winning_ticket.safetensors", 1),
    ):
        ticket, metadata = lf.load_ticket(ticket_file)
        assert (metadata["round"], metadata["seed"], metadata["step"]) == (2, seed, 10)
        assert metadata["config"]["rewind"] == "step:10"
        anchor, _ = lf.load_tree(finished / f"seed{seed}" / "anchor.safetensors")
        masks, _ = lf.load_tree(finished / f"seed{seed}" / "round02" / "masks.safetensors")
        assert lf.same_bits(ticket.masks, masks["masks"])
        assert lf.same_bits(ticket.params, lf.apply_masks(anchor["params"], ticket.masks))
        assert lf.count(ticket.masks) == (32_128, 50_200)
        trained, _ = lf.load_tree(finished / f"seed{seed}" / "round02" / "params.safetensors")
        assert lf.same_bits(lf.apply_masks(trained["params"], ticket.masks), trained["params"])


def test_the_same_seed_twice_gives_the_same_bits(finished: Path, tmp_path: Path) -> None:
    """Params, masks and metrics, from the configuration file that the run wrote."""
    again = tmp_path / "again"
    assert run("prune", "--config", finished / "config.toml", "--out", again) == 0
    assert (again / "config.toml").read_text() == (finished / "config.toml").read_text()
    assert metrics(again) == metrics(finished)
    same_files(finished, again)


def test_options_typed_win_over_the_files(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "other"
    assert run("train", "--config", finished / "config.toml", "--epochs", "1", "--replicates", "1", "--out", out) == 0
    _, config, records = read_run(out)
    assert (config.epochs, config.steps, config.replicates, config.rounds) == (1, None, 1, 0)
    assert config.eval_every == 10
    assert len(records) == 1
    assert not (out / "last_round.safetensors").exists()
    assert not (out / "accuracy_vs_density.png").exists()


@pytest.mark.parametrize("kept", [1, 4, 6])
def test_resuming_gives_what_an_uninterrupted_run_gives(finished: Path, tmp_path: Path, kept: int) -> None:
    """Cut a finished run back to `kept` trainings and half a line, as a crash would leave it."""
    folder = tmp_path / "cut"
    shutil.copytree(finished, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: 1 + kept]) + lines[1 + kept][:50])
    for line in lines[2 + kept :]:
        item = json.loads(line)
        suffix = "" if item["variant"] == "ticket" else f"-{item['variant']}"
        shutil.rmtree(folder / f"seed{item['seed']}" / f"round{item['round']:02d}{suffix}")
    assert run("resume", folder) == 0
    assert metrics(folder) == metrics(finished)
    same_files(folder, finished)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path, number: signal.Signals) -> None:
    options = ["--rounds", "2", "--steps", "150", "--eval-every", "30"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "lthfunc_cli", "prune", *options, "--out", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        said = ""
        while "round 0" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        process.send_signal(number)
        said += process.stderr.read()
    assert process.returncode == 128 + number, said
    assert f"Resume with: lthfunc resume {folder}" in said
    assert "Traceback" not in said
    assert run("resume", folder) == 0
    whole = tmp_path / "whole"
    assert run("prune", *options, "--out", whole) == 0
    assert metrics(folder) == metrics(whole)
    same_files(folder, whole)


@pytest.mark.slow
@pytest.mark.long
def test_an_interruption_keeps_the_training_under_way(tmp_path: Path) -> None:
    """SIGTERM far from any checkpoint's time: the step under way is the last, and its state is kept."""
    folder, whole = tmp_path / "a run", tmp_path / "whole"
    options = ["--rounds", "0", "--steps", "700", "--eval-every", "300", "--engine", "eager", "--threads", "1"]
    command = [sys.executable, "-m", "lthfunc_cli", "prune", *options, "--out", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: (progress(folder) or {}).get("trainings"), process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=HANG)
    assert process.returncode == 143, said
    assert f"stopped; everything is saved. Resume with: lthfunc resume '{folder}'" in said
    (kept,) = folder.glob("seed0/round0*/checkpoint-*")
    assert step_of(kept) > 0
    assert run("verify", folder) == 0
    assert run("resume", folder) == 0
    assert run("prune", *options, "--out", whole) == 0
    assert metrics(folder) == metrics(whole)
    same_files(folder, whole)


SLOW = """
import pathlib, time
import torch


class Net(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc = torch.nn.Linear(64, classes)

    def forward(self, x):
        if self.training and pathlib.Path("slow").exists():
            pathlib.Path("in-a-step").touch()
            while True:
                time.sleep(1)
        return self.fc(x.flatten(1))
"""


@pytest.mark.slow
def test_a_second_interruption_stops_at_once(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SLOW)
    options = ["--arch", "net.py:Net", "--rounds", "1", "--steps", "5", "--engine", "eager", "--out", "run"]
    command = [sys.executable, "-m", "lthfunc_cli", "prune", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        until((tmp_path / "run").exists, process)
        (tmp_path / "slow").touch()
        until((tmp_path / "in-a-step").exists, process)
        process.send_signal(signal.SIGINT)
        said = ""
        while "press Ctrl-C again to stop at once" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        assert process.poll() is None  # the step is not over
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=HANG)[1]
    assert process.returncode == 130, said
    assert "stopping after this step; press Ctrl-C again to stop at once" in said
    assert "finished trainings and checkpoints are saved. Resume with: lthfunc resume run\n" in said
    assert "Traceback" not in said


def test_a_folder_in_use_is_refused_and_left_alone(finished: Path, tmp_path: Path, capsys: Any) -> None:
    before = sorted((str(path), path.stat().st_mtime_ns) for path in finished.rglob("*"))
    assert run("prune", *SMALL, "--out", finished) == 2
    assert (
        f"holds another run; name another folder, or resume it with: lthfunc resume {finished}"
        in capsys.readouterr().err
    )
    assert sorted((str(path), path.stat().st_mtime_ns) for path in finished.rglob("*")) == before
    (tmp_path / "note.txt").write_text("mine")
    assert run("prune", *SMALL, "--out", tmp_path) == 2
    assert "a new or empty folder" in capsys.readouterr().err
    assert run("prune", *SMALL, "--out", tmp_path / "note.txt") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_json_is_all_that_stdout_holds(tmp_path: Path, capsys: Any) -> None:
    assert run("prune", *SMALL, "--json", "--out", tmp_path / "run") == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["kept"] for row in result["rounds"]] == [50_200, 40_160, 32_128]
    assert set(result["rounds"][0]["test_accuracy"]) == {"mean", "std"}
    assert run("info", tmp_path / "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["finished"] is True


def test_info_shows_runs_tickets_and_what_is_unfinished(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert run("info", finished) == 0
    out = capsys.readouterr().out
    assert "10 of 10 trainings finished" in out
    assert "mean ± standard deviation of 2 replicates" in out
    assert "40,160 / 50,200" in out
    assert "arch=lenet300  dataset=digits  " in out
    assert "optimizer=" not in out  # a default
    assert "accuracy_vs_density.png" in out
    assert "seed*/  " in out
    assert run("info", finished / "winning_ticket.safetensors") == 0
    out = capsys.readouterr().out
    assert "32,128 of 50,200 weights remain (64.00 %)" in out
    assert "\narch=lenet300  dataset=digits  " in out
    assert "optimizer=" not in out
    folder = tmp_path / "cut"
    shutil.copytree(finished, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    assert run("info", folder) == 0
    assert f"unfinished; resume with: lthfunc resume {folder}" in capsys.readouterr().out
    with locked(folder):
        assert run("info", folder) == 0
    assert f"a process is working on it: lthfunc watch {folder}\n" in capsys.readouterr().out
    (tmp_path / "runs").mkdir()
    folder = folder.rename(tmp_path / "runs" / "cut")
    shutil.copytree(finished, tmp_path / "runs" / "whole")
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["resume"], "Unfinished runs here: runs/cut\n"),
        (["report"], "The newest runs here: "),
        (["report", "runs/hwole"], "is not a run folder (it does not exist); did you mean 'runs/whole'?"),
    ):
        assert run(*words) == 2
        assert said in capsys.readouterr().err
    for target in (tmp_path, tmp_path / "absent", finished / "config.toml"):
        assert run("info", target) == 2


def test_pictures_are_pictures_of_the_records(finished: Path) -> None:
    from lthfunc.reports.curves import accuracy_chart, curve_charts
    from lthfunc.reports.matplotlib_figures import panels, printed

    for name in ("accuracy_vs_density.png", "training_curves.png", "training_time.png"):
        assert (finished / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    _, _, records = read_run(finished)
    axes = printed(accuracy_chart({"": records})).axes[0]
    ticket = next(line for line in axes.containers if line.get_label() == "ticket")[0]
    assert list(ticket.get_xdata()) == pytest.approx([100, 80, 64])
    tickets = [item for item in records if item["variant"] == "ticket"]
    means = [50 * sum(item["test_accuracy"] for item in tickets if item["round"] == k) for k in range(3)]
    assert list(ticket.get_ydata()) == pytest.approx(means)
    curves = panels(curve_charts(records), "t").axes[0].lines
    assert np.asarray(curves[0].get_xdata()).tolist() == [0, 10, 20, 30, 40]
