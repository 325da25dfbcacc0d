"""Sweeps: every trial is a run like any other, the best is told by validation, and the same command goes on."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run
from lthfunc_cli import training

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.sweeps import Range, Space, config_of, space_of, suggested, trials_of
from lthfunc.runs.folder import read_run
from lthfunc.runs.json_lines import read_lines

SHORT = ["--steps", "20", "--rounds", "1"]
GRID = ["--grid", "lr=0.01,0.0001", "--grid", "weight-decay=0,0.001"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, drawn: None) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "sweep"
    assert run("sweep", *GRID, *SHORT, "--replicates", 2, "--out", folder) == 0
    return folder


def test_a_grid_runs_every_combination(swept: Path, capsys: Any) -> None:
    expected = [(0.01, 0.0), (0.01, 0.001), (0.0001, 0.0), (0.0001, 0.001)]
    for number, (lr, decay) in enumerate(expected):
        _, config, records = read_run(swept / f"trial{number:03d}")
        assert (config.lr, config.weight_decay, config.replicates) == (lr, decay, 2)
        assert len(records) == 4
    assert (swept / "sweep_lr_weight_decay.png").read_bytes().startswith(b"\x89PNG")
    lines = read_lines(swept / "sweep.jsonl")
    assert lines[0]["space"] == {"lr": [0.01, 0.0001], "weight_decay": [0.0, 0.001]}
    for line in lines[1:]:
        records = read_run(swept / f"trial{line['number']:03d}")[2]
        last = [item["val_accuracy"] for item in records if item["round"] == 1]
        assert line["worth"]["mean"] == pytest.approx(sum(last) / 2)
    worths = [line["worth"]["mean"] for line in lines[1:]]
    capsys.readouterr()
    assert run("sweep", *GRID, *SHORT, "--replicates", 2, "--out", swept, "--json") == 0  # nothing is left to do
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == worths.index(max(worths))


def test_an_interrupted_sweep_goes_on(swept: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "again"
    shutil.copytree(swept, folder)
    lines = (folder / "sweep.jsonl").read_text().splitlines(keepends=True)
    (folder / "sweep.jsonl").write_text("".join(lines[:3]))  # two trials had ended
    metrics = (folder / "trial002" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "trial002" / "metrics.jsonl").write_text("".join(metrics[:3]))  # the third was under way
    shutil.rmtree(folder / "trial003")
    assert run("sweep", *GRID, *SHORT, "--replicates", 2, "--out", folder) == 0
    err = capsys.readouterr().err
    assert "trial 2 of 4" in err
    assert "trial 1 of 4" not in err
    for part in ("worth", "test_accuracy", "density"):
        assert [line[part] for line in read_lines(folder / "sweep.jsonl")[1:]] == [
            line[part] for line in read_lines(swept / "sweep.jsonl")[1:]
        ]


def test_the_dense_network_alone_can_be_swept(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "dense"
    assert (
        run("sweep", "--grid", "optimizer=adam,sgd", "--steps", 5, "--rounds", 0, "--objective", "dense", "--out", out)
        == 0
    )
    configs = [read_run(out / f"trial00{number}")[1] for number in range(2)]
    assert [config.optimizer for config in configs] == ["adam", "sgd"]
    assert configs[0].lr != configs[1].lr  # a rate belongs to its optimiser
    assert "Best: trial" in capsys.readouterr().out


def test_a_failed_trial_is_told_and_the_sweep_goes_on(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    given = ["--grid", "batch-size=50,99999", "--steps", 4, "--rounds", 0]
    assert run("sweep", *given, "--out", out) == 0
    failed = read_lines(out / "sweep.jsonl")[2]
    assert failed["worth"] is None
    assert "--batch-size: invalid value 99999" in failed["reason"]
    assert "invalid value 99999" in capsys.readouterr().out


def test_the_first_trial_may_fail_too(tmp_path: Path, capsys: Any) -> None:
    """By its own values, which another trial need not have; nothing is left where they are not the reason."""
    shared = ["--steps", 9, "--rounds", 0, "--engine", "eager"]
    assert run("sweep", "--grid", "lr=1e30,0.001", *shared, "--out", tmp_path / "a") == 0
    shown = capsys.readouterr()
    assert "trial 0 failed: seed 0, round 0: training diverged" in shown.err
    assert "Best: trial 1" in shown.out
    assert [line["worth"] is None for line in read_lines(tmp_path / "a" / "sweep.jsonl")[1:]] == [True, False]
    assert run("sweep", "--grid", "batch-size=99999,50", *shared, "--out", tmp_path / "b") == 0
    assert "Best: trial 1" in capsys.readouterr().out
    assert run("sweep", "--grid", "lr=0.1,0.2", "--batch-size", 99999, *shared, "--out", tmp_path / "c") == 2
    assert not (tmp_path / "c").exists()
    assert run("sweep", "--grid", "lr=1e30,1e29", *shared, "--out", tmp_path / "d") == 2
    assert f"{tmp_path / 'd'}: every trial failed" in capsys.readouterr().err


@pytest.mark.parametrize("gone", ["the data set", "the folder"])
def test_what_no_other_trial_could_escape_ends_the_sweep(
    gone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Finished trials stay, nothing is recorded of the others, and the same command goes on once it can."""
    data, out, prepare = tmp_path / "data.npz", tmp_path / "out", training.prepare_run
    hidden, foreign, counted = tmp_path / "hidden.npz", out / "trial001" / "mine.txt", itertools.count()
    values = np.arange(200 * 6, dtype=np.float32).reshape(200, 6) % 7
    np.savez(data, x=values, y=np.arange(200) % 2)
    given = ["--grid", "lr=0.1,0.01,0.001", "--dataset", f"npz:{data}", "--arch", "lenet300", "--steps", 4]

    def then_gone(*args: Any) -> Any:
        if next(counted) == 1 and gone == "the data set":
            data.rename(hidden)
        elif gone == "the folder" and (out / "trial000").exists():
            foreign.parent.mkdir()
            foreign.write_text("mine")
        return prepare(*args)

    with monkeypatch.context() as patched:
        patched.setattr("lthfunc_cli.running.prepare_run", then_gone)
        assert run("sweep", *given, "--rounds", 0, "--engine", "eager", "--out", out) == 2
    assert len(read_lines(out / "sweep.jsonl")) == 2  # the sweep and its first trial
    last = capsys.readouterr().err.splitlines()[-1]
    if gone == "the folder":
        assert last.startswith(f"lthfunc: --out: invalid value {str(foreign.parent)!r}"), last
        assert foreign.read_text() == "mine"
        shutil.rmtree(foreign.parent)
    else:
        assert last.startswith("lthfunc: --dataset: ")
        assert str(data) in last
        hidden.rename(data)
    assert run("sweep", *given, "--rounds", 0, "--engine", "eager", "--out", out) == 0
    assert [line["worth"] is None for line in read_lines(out / "sweep.jsonl")[1:]] == [False] * 3


def test_an_interruption_between_trainings_says_how_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lthfunc_cli.running.prepare_run", interrupted)
    assert run("sweep", "--grid", "lr=0.1,0.2", *SHORT) == 130
    (folder,) = Path("runs").iterdir()
    assert "stopped; finished trials are saved. Resume with: lthfunc " in (err := capsys.readouterr().err)
    assert err.endswith(f"--out {folder}\n")


def test_searching_is_the_same_each_time_and_goes_on(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    given = ["--search", "lr=1e-4..1e-1", "--search", "batch-size=20..60", "--search", "optimizer=adam,sgd"]
    given += ["--steps", "4", "--rounds", "0", "--seed", "3"]
    assert run("sweep", *given, "--trials", 3, "--out", tmp_path / "short") == 0
    assert run("sweep", *given, "--trials", 5, "--out", tmp_path / "short") == 0
    assert run("sweep", *given, "--trials", 5, "--out", tmp_path / "long") == 0
    values = [
        [line["values"] for line in read_lines(tmp_path / name / "sweep.jsonl")[1:]] for name in ("short", "long")
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 5
    assert len({each["lr"] for each in values[0]}) == 5
    for each in values[0]:
        assert 1e-4 <= each["lr"] <= 1e-1
        assert isinstance(each["batch_size"], int)
        assert 20 <= each["batch_size"] <= 60
    assert (tmp_path / "long" / "sweep_lr.png").exists()


def test_suggestions_follow_what_was_good() -> None:
    pytest.importorskip("optuna")
    space: Space = {"lr": Range(1e-4, 1e-1, whole=False)}
    known: list[tuple[dict[str, Any], float | None]] = []
    for _ in range(30):
        values = suggested(space, 0, known)
        known.append((values, 1 - abs(values["lr"] - 0.01)))
    late = [values["lr"] for values, _ in known[15:]]
    assert sum(0.002 < value < 0.05 for value in late) > 10


def test_spaces_are_read_by_the_settings_own_types() -> None:
    space = space_of("--grid", ["batch-size=10,20", "nesterov=true,false", "optimizer=sgd,adam"], ranges=False)
    assert space == {"batch_size": [10, 20], "nesterov": [True, False], "optimizer": ["sgd", "adam"]}
    assert trials_of({"a": [1, 2], "b": [3, 4]}) == [
        {"a": 1, "b": 3}, {"a": 1, "b": 4}, {"a": 2, "b": 3}, {"a": 2, "b": 4},
    ]  # fmt: skip
    assert space_of("--search", ["lr=0.1..0.5"], ranges=True) == {"lr": Range(0.1, 0.5, whole=False)}
    assert not Range(0.1, 0.5, whole=False).log
    config = Config(steps=9)
    assert config_of(config, {"epochs": 2}).steps is None
    with pytest.raises(UserError, match=r"--rate: invalid value 2\.0"):
        config_of(config, {"rate": 2.0})


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--grid and --search: give one of them"),
        (["--grid", "lr=1", "--search", "lr=1..2"], "--grid and --search: give one of them"),
        (["--grid", "lrr=1"], "--grid: unknown name 'lrr'; did you mean 'lr'?"),
        (["--grid", "lr"], "--grid: invalid value 'lr' (expected SETTING=VALUES"),
        (["--grid", "lr=a"], "--lr: invalid value 'a' (expected a number"),
        (["--grid", "lr=-1"], "--lr: invalid value -1.0 (expected a number above 0"),
        (["--grid", "lr=1,2,1.0"], "--grid: invalid value 'lr=1,2,1.0' (expected each value once)"),
        (["--search", "optimizer=sgd,sdg,adam"], "--optimizer: unknown name 'sdg'"),
        (["--grid", "control=reinit"], "a setting with a single value"),
        (["--grid", "lr=1", "--trials", "3"], "--trials: invalid value 3"),
        (["--grid", "lr=1", "--objective", "test"], "--objective: unknown name 'test'"),
        (["--grid", "lr=1", "--roundz", "3"], "No such option: --roundz"),
        (["--grid", "lr=1", "--out", "file.txt"], "--out: invalid value 'file.txt'"),
        (["--search", "lr=2..1"], "a range whose second number is larger"),
        (["--search", "optimizer=adam..sgd"], "since optimizer is not a number"),
        (["--grid", "batch-size=99999", "--steps", "3"], "--batch-size: invalid value 99999"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("mine")
    assert run("sweep", *arguments) == 2
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else True


def test_another_sweep_is_not_written_over(swept: Path, capsys: Any) -> None:
    assert run("sweep", "--grid", "lr=0.5", *SHORT, "--out", swept) == 2
    assert "has other results: lr is [0.01, 0.0001] there, but [0.5] here" in capsys.readouterr().err
