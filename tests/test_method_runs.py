"""Linear mode connectivity, and comparisons that are interrupted and go on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from lthfunc_cli.main import main
from lthfunc_cli.progress import _Tasks
from torch import nn

import lthfunc as lf
from lthfunc.catalog.courses import COURSES
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.courses.context import MethodContext, Outcome
from lthfunc.experiments.courses.prepare import method_context
from lthfunc.experiments.resolve import resolved
from lthfunc.runs.json_lines import line_of, read_lines
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.methods import COMPARED, MethodTask
from lthfunc.scheduling.queue import Execution
from lthfunc.training.results import Stopped
from lthfunc.training.trainer import make_trainer


@pytest.fixture(scope="module")
def falling() -> MethodContext:
    """The same, at a rate that drops to a hundredth."""
    return method_context(resolved(Config(density=0.1, rounds=2, steps=60, engine="eager", schedule="step")))[1]


# ---- linear mode connectivity ----


def test_lines_between_networks(few_digits: lf.Dataset) -> None:
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)))
    a, b = (lf.train(model, few_digits, optimizer=lf.adam(1e-2), steps=20, seed=s)(lf.init(model, s)) for s in range(2))
    found = lf.line(model, a, b, few_digits.test, few_digits.scale, points=5)
    for alpha, error in zip(found.alphas.tolist(), found.error.tolist(), strict=True):
        params = {name: (1 - alpha) * leaf + alpha * b.params[name] for name, leaf in a.params.items()}
        buffers = {
            name: (1 - alpha) * leaf + alpha * b.buffers[name] if leaf.is_floating_point() else leaf
            for name, leaf in a.buffers.items()
        }
        between = a._replace(params=params, buffers=buffers)
        assert 1 - error == pytest.approx(lf.accuracy_on(model, between, few_digits))
    assert found.barrier == pytest.approx(max(found.error.tolist()) - (found.error[0] + found.error[-1]) / 2)
    same = lf.line(model, a, a, few_digits.test, few_digits.scale, points=3)
    assert same.barrier == pytest.approx(0)


def test_copies_part_by_the_order_of_their_data_alone(few_digits: lf.Dataset) -> None:
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    trainer = make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=40)
    start = lf.init(model, 0)
    found = lf.instability(model, trainer, start, [0, 6], steps=8, seed=0, points=3)
    assert [item.k for item in found] == [0, 6]
    again = lf.instability(model, trainer, start, [6], steps=8, seed=0, points=3)
    assert torch.equal(again[0].line.loss, found[1].line.loss)
    with pytest.raises(UserError, match=r"--at: invalid value 8 \(expected a step from 0 to 7"):
        lf.instability(model, trainer, start, [8], steps=8, seed=0)


def test_a_comparison_goes_on_after_a_change_that_changes_no_result(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    words = ["methods", "--density", "0.2", "--method", "dense", "--steps", "3", "--engine", "eager", "--out", str(out)]
    assert main(words) == 0
    before = out.read_text().splitlines()
    assert main([*words, "--on-nonfinite", "skip"]) == 0
    assert out.read_text().splitlines() == before
    about = read_lines(out)[0]  # as earlier versions wrote it, with more of the settings
    about["config"] |= {"on_nonfinite": "stop", "checkpoint_every": "30s", "energy": False}
    out.write_text("\n".join([line_of(about), *before[1:], ""]))
    assert main([*words, "--on-nonfinite", "skip", "--replicates", "2"]) == 0
    assert [line["seed"] for line in read_lines(out)[1:]] == [0, 1]
    assert main([*words, "--lr", "0.5"]) == 2


# ---- as trainings of the queue ----


@pytest.mark.parametrize("name", ["imp-late", "imp-tuned", "gradual", "rigl", "early-bird", "supermask"])
def test_a_method_stopped_anywhere_ends_in_the_same_bits(name: str, falling: MethodContext, tmp_path: Path) -> None:
    """A checkpoint in the middle of a stage, at its end, and in the last training."""
    task = MethodTask(1, name)
    whole: Outcome = COURSES.load(name)(falling, 1)
    for stop in (1, 6, 7, 45, 58, whole.steps - 1):
        taken = [0]
        config = Config(checkpoint_every="never")
        run = Execution(config, falling, tmp_path, lambda taken=taken, stop=stop: taken[0] >= stop, workload=COMPARED)  # type: ignore[misc]
        with pytest.raises(Stopped):
            train_with_checkpoints(run, [task], lambda number, points, taken=taken: taken.__setitem__(0, number))  # type: ignore[misc]
    (again,), _ = train_with_checkpoints(Execution(Config(), falling, tmp_path, workload=COMPARED), [task])
    assert lf.same_bits(again.ticket, whole.ticket)
    assert (again.steps, again.test) == (whole.steps, whole.test)


def test_an_interrupted_comparison_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second method: the first is in the file, the second in a checkpoint beside it."""
    out = tmp_path / "found.jsonl"
    words = ["methods", "--density", "0.2", "--method", "dense", "--method", "imp", "--steps", "30", "--rounds", "1"]
    words += ["--engine", "eager", "--jobs", "1"]
    assert main([*words, "--out", str(tmp_path / "whole.jsonl")]) == 0
    begin = _Tasks.begin

    def interrupting(self: _Tasks, task: MethodTask, stop: int) -> None:
        begin(self, task, stop)
        if task.method == "imp":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(_Tasks, "begin", interrupting)
        assert main([*words, "--out", str(out)]) == 130
    assert [line["method"] for line in read_lines(out)[1:]] == ["dense"]
    assert list(tmp_path.glob("found.jsonl.checkpoints/seed0/round00-imp/checkpoint-*"))
    assert main([*words, "--out", str(out)]) == 0
    assert not (tmp_path / "found.jsonl.checkpoints").exists()
    for mine, theirs in zip(read_lines(out)[1:], read_lines(tmp_path / "whole.jsonl")[1:], strict=True):
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
