"""Programs from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from lthfunc_cli.main import main
from test_execution import compiling

import lthfunc as lf
from lthfunc.deployment import autotune
from lthfunc.deployment.specialized_module import ProgramReport, Timings
from lthfunc.deployment.timing import ProcessorShare
from lthfunc.deployment.tuning_cache import TuningCache
from lthfunc.reports.program_tables import beside_line, steadiness_line


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "RUN"
    assert main(["prune", "--rounds", "3", "--rate", "0.6", "--steps", "200", "--out", str(folder)]) == 0
    return folder


@compiling
def test_specialize_tells_time_cost_and_accuracy(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(autotune, "_SECONDS", 0.001)
    monkeypatch.setattr(autotune, "_LAYER_SECONDS", 0.001)
    assert main(["specialize", str(run), "--round", "3", "--fresh", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["test_accuracy"] == told["masked_test_accuracy"] > 0.8
    assert {"dense", "compact", "sparse"} <= set(told["seconds_a_batch"])
    assert told["compression_ratio"] > 10
    assert main(["specialize", str(run), "--format", "sparse"]) == 0
    shown = capsys.readouterr().out
    assert "theoretical speed-up" in shown
    assert "sparse: test accuracy" in shown
    assert "the run's table is about those of the early-stopping step" in shown


def test_a_faster_program_of_another_runtime_is_explained() -> None:
    def line(chosen: str, onnxruntime: float) -> str | None:
        measured = Timings({"dense": [2.0], "sparse": [1.0], "onnxruntime": [onnxruntime]}, 4)
        return beside_line(ProgramReport(chosen, {}, {}, None, None, (1, 1), 0.0, measured))  # type: ignore[arg-type]

    assert "unless chosen: --format onnxruntime" in str(line("sparse", 0.5))
    assert line("sparse", 1.5) is None
    assert line("onnxruntime", 0.5) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--round", "9"], "--round: invalid value 9 (expected a finished round of"),
        (["--seed", "5"], "--seed: invalid value 5 (expected one of the run's seeds: 0"),
        (["--format", "spars"], "--format: unknown name 'spars'"),
        (["--batch-size", "0"], "--batch-size: invalid value 0"),
        (["--batch-size", "4000"], "--batch-size: invalid value 4000 (expected at most 360"),
        (["--format", "2:4"], "--format: invalid value '2:4' (expected another for this network, since 2:4 needs"),
    ],
)
def test_specialize_refuses_in_one_line(run: Path, options: list[str], words: str, capsys: Any) -> None:
    assert main(["specialize", str(run), *options]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_training_compact_from_the_command_line(run: Path, tmp_path: Path, capsys: Any) -> None:
    """The same masks and nearly the same weights as without."""
    words = ["prune", "--rounds", "3", "--rate", "0.6", "--steps", "200", "--compact", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert main(["train", "--compact", "--steps", "5", "--out", str(tmp_path / "dense")]) == 0
    for number in range(4):
        both = [lf.load_tree(folder / "seed0" / f"round0{number}" / "masks.safetensors")[0]["masks"]
                for folder in (run, tmp_path / "run")]  # fmt: skip
        assert lf.mask_overlap(*both) > 0.99


def test_times_of_a_program_that_others_kept_waiting_give_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    once, asleep = ProcessorShare(), ProcessorShare()
    once.watched(lambda n: sleep(0.01))(1)
    assert once.share is None, "a single call may compile"
    asleep.watched(lambda n: sleep(0.01))(2)
    assert asleep.share is not None
    assert asleep.share < 0.5
    shares = iter([0.21, 0.3, 0.25, 0.2, 1.3])
    monkeypatch.setattr(ProcessorShare, "share", property(lambda _: next(shares)))
    monkeypatch.setattr(autotune, "in_turn", lambda runs, **_: {"dense": [1.0] * 9, "sparse": [2.0] * 9})
    memory, runs = TuningCache(None), dict.fromkeys(("dense", "sparse"), torch.relu)
    for ratio in (None, 2.0):
        name, measured = autotune.fastest(runs, {name: name for name in runs}, torch.zeros(4, 1), memory)
        assert (measured.speedup("sparse"), memory.get("sparse") is None) == (ratio, ratio is None)
        report = ProgramReport(name, {}, {}, None, None, (1, 1), 0.0, measured)  # type: ignore[arg-type]
        assert ("it ran for 21 % of the time" in str(steadiness_line(report))) == (ratio is None)
