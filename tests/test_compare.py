"""Runs beside each other, and a live run seen from elsewhere."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HANG, run, under_way, until
from scipy import stats

from lthfunc.reports.run_comparison import ComparedRun, compared, comparison_warnings, paired
from lthfunc.runs.folder import PROGRESS, read_run
from lthfunc.runs.lock import at_work
from lthfunc.scheduling.progress import progress

SMALL = ["--rounds", "2", "--steps", "30", "--eval-every", "10", "--replicates", "3"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    assert run("prune", *SMALL, "--out", folder / "base") == 0
    assert run("prune", *SMALL, "--lr", 0.01, "--seed", 1, "--out", folder / "fast|er") == 0
    assert run("train", "--steps", 5, "--out", folder / "alone") == 0
    return folder


def by_seed(folder: Path, number: int) -> dict[int, float]:
    return {item["seed"]: item["test_accuracy"] for item in read_run(folder)[2] if item["round"] == number}


def test_differences_are_tested_over_shared_seeds(runs: Path, capsys: Any) -> None:
    assert run("compare", runs / "base", runs / "fast|er", "--at", "last", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    base, other = found["runs"]
    assert found["baseline"] == base["run"] == "base"
    assert base["difference"] is None
    assert other["settings"] == {"lr": 0.01, "seed": 1}
    mine, theirs = by_seed(runs / "fast|er", 2), by_seed(runs / "base", 2)
    shared = [1, 2]  # of seeds 0 to 2 and 1 to 3
    differences = np.array([mine[seed] - theirs[seed] for seed in shared])
    assert other["shared_seeds"] == 2
    assert other["difference"] == pytest.approx(differences.mean())
    assert other["difference_std"] == pytest.approx(differences.std(ddof=1))
    assert other["test_accuracy"] == pytest.approx(np.mean(list(mine.values())))
    if differences.std() > 0:  # Student's statistic by hand
        t = differences.mean() / (differences.std(ddof=1) / math.sqrt(2))
        assert other["p"] == pytest.approx(2 * stats.t.sf(abs(t), 1))


def test_what_changes_no_result_is_no_difference(runs: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(runs / "base", tmp_path / "other")
    text = (runs / "base" / "config.toml").read_text()
    for name, value in (("energy", "true"), ("mlflow", "true"), ("on_nonfinite", '"skip"'), ("gpu_share", "0.5")):
        text = re.sub(rf"^{name} = .*$", f"{name} = {value}", text, flags=re.MULTILINE)
    (tmp_path / "other" / "config.toml").write_text(text)
    capsys.readouterr()
    assert run("compare", runs / "base", tmp_path / "other", "--json") == 0
    assert [each["settings"] for each in json.loads(capsys.readouterr().out)["runs"]] == [{}, {}]
    page = tmp_path / "both.html"
    assert run("report", runs / "base", tmp_path / "other", "--out", page, "--no-figures") == 0
    rows = re.findall(r'<tr class="(\w*)"><td>(\w+)</td>', page.read_text("utf-8"))
    assert ("", "energy") in rows
    assert not [name for mark, name in rows if mark == "loud"]


def test_the_paired_test_is_students() -> None:
    generator = np.random.default_rng(0)
    left, right = generator.normal(0.9, 0.01, 8), generator.normal(0.89, 0.01, 8)
    found = paired(dict(enumerate(left)), dict(enumerate(right)))
    assert found is not None
    assert found.p == pytest.approx(stats.ttest_rel(left, right).pvalue)
    low, high = stats.ttest_rel(left, right).confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert paired({0: 0.9}, {1: 0.8}) is None
    alone = paired({0: 0.9}, {0: 0.8})
    assert alone is not None
    assert (alone.p, alone.interval) == (None, None)
    same = paired({0: 0.9, 1: 0.9}, {0: 0.8, 1: 0.8})
    assert same is not None
    assert same.p is None


def test_no_two_columns_have_one_name(runs: Path, capsys: Any) -> None:
    assert run("compare", runs / "base", runs / "alone", "--at", "dense", "--csv") == 0
    head, first, *_ = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert len({*head}) == len(head)
    found = dict(zip(head, first, strict=True))
    assert (found["setting_replicates"], found["replicates"]) == ("3", "3")


def test_tables_for_papers_and_sheets_say_the_same(runs: Path, capsys: Any) -> None:
    both = (runs / "base", runs / "fast|er")
    assert run("compare", *both, "--at", "0.64", "--csv") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["run"] for row in rows] == ["base", "fast|er"]
    assert [int(row["round"]) for row in rows] == [2, 2]
    assert float(rows[0]["test_accuracy"]) == pytest.approx(np.mean(list(by_seed(runs / "base", 2).values())))
    assert run("compare", *both, "--at", "dense", "--markdown") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "fast\\|er" in lines[3]
    assert {line.replace("\\|", "").count("|") for line in lines} == {lines[0].count("|")}
    assert run("compare", *both, "--baseline", runs / "fast|er") == 0
    out = capsys.readouterr().out
    assert "differences to fast|er" in out
    assert run("compare", runs / "base", runs / "alone") == 0
    assert "p needs two seeds that a run shares with the baseline" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said(runs: Path) -> None:
    _, config, records = read_run(runs / "base")
    same = ComparedRun("base", config, records, None)
    other = same._replace(name="other", config=replace(config, dataset="mnist"))
    assert comparison_warnings([same, same], compared([same, same], "last", 0)) == []
    (line,) = comparison_warnings([same, other], compared([same, other], "last", 0))
    assert "different data sets (digits, mnist)" in line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["base", "absent"], "absent: is not a run folder"),
        (["base", "base"], "each run once"),
        (["base", "--at", "2"], "--at: invalid value '2' (expected winning, last, dense, or a density in (0, 1]"),
        (["base", "--csv", "--json"], "--csv, --markdown and --json: give only one of them"),
    ],
)
def test_mistakes_are_one_line(
    runs: Path, arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(runs)
    assert run("compare", *arguments) == 2
    assert told in capsys.readouterr().err


def test_a_live_run_is_seen_from_elsewhere(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "live"
    options = ["--rounds", "1", "--steps", "2000000", "--engine", "eager", "--out", str(folder)]
    command = [sys.executable, "-m", "lthfunc_cli", "prune", *options]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        until(lambda: under_way(folder), process)
        about = progress(folder)
        assert about is not None
        assert about["total"] == 4_000_000
        (training,) = about["trainings"]
        assert (training["seed"], training["round"], training["variant"]) == (0, 0, "ticket")
        assert 0 < training["at"] < training["stop"] == 2_000_000
        assert at_work(folder)
        assert run("watch", folder, "--once") == 0
        out = capsys.readouterr().out
        assert "lenet300 on digits: 0 of 2 trainings finished" in out
        assert "of 4,000,000 steps" in out
        assert "seed 0 round 0" in out
        process.terminate()
        process.wait(HANG)
    finally:
        process.kill()
        process.wait()
    assert not (folder / PROGRESS).exists()
    assert not at_work(folder)
    assert run("watch", folder) == 0  # which ends at once, since nobody works on it
    assert f"no process is working on it; resume with: lthfunc resume {folder}" in capsys.readouterr().out


def test_a_finished_run_is_shown_once(runs: Path, capsys: Any) -> None:
    assert run("watch", runs / "base") == 0
    out = capsys.readouterr().out
    assert "9 of 9 trainings" in out
    assert "ticket" in out
    assert run("watch", runs / "absent") == 2
    assert run("watch", runs / "base", "--every", 0) == 2
