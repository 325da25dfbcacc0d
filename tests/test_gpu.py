"""On a GPU: the same masks, nearly the same numbers, and the compiled step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import NormedNet

import lthfunc as lf
from lthfunc.training.loop import make_trainer, take_steps
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset

pytestmark = pytest.mark.gpu


def test_masks_have_the_same_bits_on_both_devices() -> None:
    state = lf.init(lf.models.lenet5(), 0)
    # Few distinct magnitudes, so that ties decide.
    state = state._replace(params={name: (leaf * 8).round() / 8 for name, leaf in state.params.items()})
    for allocate in (lf.globally, lf.layerwise()):
        here = lf.prune(fraction=0.5, allocate=allocate)(state)
        there = lf.prune(fraction=0.5, allocate=allocate)(ops.to_device(state, "cuda"))
        assert lf.same_bits(here.masks, ops.to_device(there.masks, "cpu"))


@pytest.mark.parametrize("compile", [False, True])
def test_training_agrees_with_the_cpu_and_keeps_pruned_weights_zero(few_digits: Dataset, compile: bool) -> None:
    model = lf.from_module(NormedNet())
    start = lf.prune(fraction=0.5)(lf.init(model))
    cpu = make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=40)
    gpu = make_trainer(
        model, ops.data_to_device(few_digits, "cuda"), optimizer=lf.adam(1e-3), batch_size=40, compile=compile
    )
    here, _ = take_steps(cpu, start, seed=0, until=20)
    there, _ = take_steps(gpu, ops.to_device(start, "cuda"), seed=0, until=20)
    for name, value in here.params.items():
        torch.testing.assert_close(there.params[name].cpu(), value, rtol=1e-2, atol=1e-3)
    for name, mask in there.masks.items():
        assert not there.params[name][~mask].any()


def test_controls_and_shuffles_run_on_the_device() -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    pruned = lf.prune(fraction=0.5)(lf.init(model, 0, "cuda"))
    assert lf.reinitialised(pruned, model, 1).params["fc1.weight"].is_cuda
    shuffled = lf.shuffled(pruned.masks, 0)
    assert lf.layer_counts(shuffled) == lf.layer_counts(pruned.masks)
    random = lf.prune(fraction=0.5, score=lf.random_scores(0))(pruned)
    here = lf.prune(fraction=0.5, score=lf.random_scores(0))(ops.to_device(pruned, "cpu"))
    assert lf.same_bits(ops.to_device(random.masks, "cpu"), here.masks)


def test_the_command_line_runs_and_resumes_on_the_device(tmp_path: Path) -> None:
    from lthfunc_cli.main import main

    out = tmp_path / "run"
    options = ["--device", "cuda", "--rounds", "1", "--steps", "30", "--rewind", "step:5", "--control", "random-mask"]
    assert main(["prune", *options, "--out", str(out)]) == 0
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:2]))
    assert main(["resume", str(out)]) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(lines)
