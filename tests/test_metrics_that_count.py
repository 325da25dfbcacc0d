"""A metric of one's own that is no share of examples: its numbers are shown as they are, wherever they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import run
from lthfunc_cli.progress import progress_view

from lthfunc.experiments.metrics import MetricScale, in_one_unit, metric_scale
from lthfunc.experiments.records import Spread, summarize
from lthfunc.reports.connectivity import barrier_charts, barrier_rows
from lthfunc.reports.curves import accuracy_chart
from lthfunc.reports.methods import MethodPoint, method_picture
from lthfunc.reports.sweeps import trial_table
from lthfunc.runs.folder import read_run
from lthfunc.runs.sweep_results import Trial

HITS = """
def hits(outputs, targets):
    return (outputs.argmax(-1) == targets).float().sum()

def share(outputs, targets):
    return (outputs.argmax(-1) == targets).float().mean()
"""
SHORT = ["--steps", 6, "--eval-every", 3, "--engine", "eager"]


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory, drawn: None) -> Path:
    """A run whose metric is the number of hits, and one whose metric is the share of them."""
    folder = tmp_path_factory.mktemp("counted")
    (folder / "mine.py").write_text(HITS)
    for name in ("hits", "share"):
        out = folder / name
        assert run("prune", *SHORT, "--rounds", 1, "--metric", f"{folder / 'mine.py'}:{name}", "--out", out) == 0
    return folder


def test_a_scale_is_that_of_its_values() -> None:
    assert metric_scale("mine:hits", [0.0, 0.5, 1.0]) == MetricScale("hits")
    plain = MetricScale("hits", 1.0, "")
    assert metric_scale("mine:hits", [0.5, 1.01]) == metric_scale("mine:hits", [-0.01]) == plain
    assert metric_scale("r2", [-3.0]).unit == "%"  # by its declaration, whatever the values
    other = metric_scale("accuracy")
    assert in_one_unit([MetricScale("hits"), other, plain]) == [plain, other, plain]
    assert [scale.error(0.25) for scale in (other, plain, metric_scale("perplexity"))] == [0.75, 0.25, 0.25]


def test_a_run_says_how_many(counted: Path, capsys: Any) -> None:
    for name, shown, other in (("hits", "test hits ", "%"), ("share", "test share %", "never")):
        records = read_run(counted / name)[2]
        assert run("resume", counted / name) == 0
        out = capsys.readouterr().out
        (dense, *_) = summarize(records)
        assert f"{dense.scale.number(dense.test_accuracy.mean)} " in out
        head = next(line for line in out.splitlines() if "early stop" in line)
        assert shown in f"{head} "
        assert f"hits {other}" not in out
        chart = accuracy_chart({"": records})
        assert ("(%)" in chart.y) == (name == "share")
    assert run("compare", counted / "hits", counted / "share", "--at", "last") == 0
    told = capsys.readouterr().out
    assert "test metric" in told
    assert "test hits %" not in told


def test_what_is_printed_while_it_runs(counted: Path, tmp_path: Path, capsys: Any) -> None:
    metric = f"{counted / 'mine.py'}:hits"
    assert run("train", *SHORT, "--metric", metric, "--out", tmp_path / "run") == 0
    (item,) = read_run(tmp_path / "run")[2]
    assert f"val {item['val_accuracy']:.2f}, test {item['test_accuracy']:.2f} (" in capsys.readouterr().err
    point = {"seed": 0, "round": 0, "variant": "ticket", "start": 0, "at": 3, "stop": 6, "density": 1.0, "rate": None}
    about = {"done": 3, "total": 6, "left": None, "metric": metric, "trainings": [
        {**point, "point": {"accuracy": 37.0, "loss": 1.0}}, {**point, "point": {"accuracy": 0.5, "loss": 1.0}},
    ]}  # fmt: skip
    from rich.console import Console

    console = Console(width=150)
    with console.capture() as captured:
        console.print(progress_view("it", 0, 2, about, [], (150, 40)))
    assert "val 37.00 " in captured.get()
    assert "val 0.50 " in captured.get()


def test_trials_methods_and_connectivity() -> None:
    worth = [Spread(37.0, 0.0), Spread(0.5, 0.0)]
    trials = [Trial(n, {"lr": n}, each, each, 1.0, 1.0, None, "mine:hits") for n, each in enumerate(worth)]
    table = trial_table(trials, 1)
    assert [column.header for column in table.columns][3:5] == ["val hits", "test hits"]
    assert [list(column.cells) for column in table.columns][3] == ["37.00", "0.50"]
    points = [
        MethodPoint(name, 0.1, 1, 0.1, {0: value}, Spread(value, 0.0), 1.0, 1.0, scale=metric_scale("m:hits", [value]))
        for name, value in (("imp", 37.0), ("snip", 35.0))
    ]
    picture: Any = method_picture(points, "")
    assert picture.x == "test hits"
    assert picture.groups[0][1] == [37.0, 35.0]
    line = {"seed": 0, "k": 0, "metric": "m:hits", "alphas": [0, 0.5, 1], "error": [-36.0, -30.0, -38.0]}
    (row,) = barrier_rows([{**line, "barrier": 7.0}])  # 37, 31 and 39 hits
    assert (row.ends.mean, row.highest.mean, row.barrier.mean) == (38.0, 31.0, 7.0)
    assert barrier_charts([{**line, "barrier": 7.0}])[0].series[0].y == [37.0, 31.0, 39.0]
