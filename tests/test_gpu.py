"""On a GPU: the same masks, nearly the same numbers, captured steps, and many networks side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import HANG, DroppingNet, NormedNet
from lthfunc_cli.main import main
from test_architectures import NARROW, small_case

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, Task
from lthfunc.experiments.trainings import train_together
from lthfunc.runs.folder import read_run
from lthfunc.runs.measurements import measurements
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.gpu_memory import width_on
from lthfunc.scheduling.queue import Execution
from lthfunc.training.loop import fit, fit_together, take_steps
from lthfunc.training.precision import Precision
from lthfunc.training.results import Stopped
from lthfunc.training.steps import Augment
from lthfunc.training.trainer import make_trainer
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


@pytest.mark.parametrize("engine", ["eager", "compile"])
@pytest.mark.parametrize("augment", [None, lf.shift_and_mirror])
def test_training_agrees_with_the_cpu_and_keeps_pruned_weights_zero(
    few_digits: Dataset, engine: str, augment: Augment | None
) -> None:
    """Long enough that steps run as captured graphs: 64 slots, several times over, and a remainder."""
    model = lf.from_module(NormedNet())
    start = lf.prune(fraction=0.5)(lf.init(model))
    cpu = make_trainer(model, few_digits, optimizer=lf.adam(1e-4), batch_size=40, augment=augment)
    gpu = make_trainer(
        model,
        ops.data_to_device(few_digits, "cuda"),
        optimizer=lf.adam(1e-4),
        batch_size=40,
        augment=augment,
        engine=engine,
    )
    here, loss = take_steps(cpu, start, seed=0, until=200)
    there, same_loss = take_steps(gpu, ops.to_device(start, "cuda"), seed=0, until=200)
    assert same_loss == pytest.approx(loss, rel=1e-2)
    for name, value in here.params.items():
        torch.testing.assert_close(there.params[name].cpu(), value, rtol=2e-2, atol=2e-3)
    for name, mask in there.masks.items():
        assert not there.params[name][~mask].any()
    again, _ = take_steps(gpu, ops.to_device(start, "cuda"), seed=0, until=200)
    for name, value in again.params.items():
        torch.testing.assert_close(there.params[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_networks_side_by_side_equal_each_alone(few_digits: Dataset, engine: str) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    data = ops.data_to_device(few_digits, "cuda")
    work = make_trainer(model, data, optimizer=lf.adam(1e-4), batch_size=40, engine=engine)
    states = [lf.init(model, 0, "cuda"), lf.prune(fraction=0.5)(lf.init(model, 1, "cuda"))]
    together = fit_together(work, states, seeds=[0, 1], until=150, eval_every=70)
    for seed, (state, found) in enumerate(zip(states, together, strict=True)):
        alone = fit(work, state, seed=seed, until=150, eval_every=70)
        for name, value in alone.state.params.items():
            torch.testing.assert_close(found.state.params[name], value, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_precisions_stay_near_float32(few_digits: Dataset, precision: Precision) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    data = ops.data_to_device(few_digits, "cuda")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    results = [
        take_steps(
            make_trainer(model, data, optimizer=lf.sgd(0.01), batch_size=40, precision=kind, engine="compile"),
            lf.init(model, 0, "cuda"),
            seed=0,
            until=100,
        )[0]
        for kind in ("fp32", precision)
    ]
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    for name, value in results[0].params.items():
        torch.testing.assert_close(results[1].params[name], value, rtol=5e-2, atol=1e-2)


def test_data_that_stays_on_the_host_is_streamed_to_the_same_numbers(few_digits: Dataset) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    start = lf.init(model, 0, "cuda")
    results = [
        take_steps(make_trainer(model, data, optimizer=lf.adam(1e-3), batch_size=40), start, seed=0, until=200)[0]
        for data in (few_digits, ops.data_to_device(few_digits, "cuda"))
    ]
    for name, value in results[0].params.items():
        torch.testing.assert_close(results[1].params[name], value, rtol=1e-3, atol=1e-4)


def test_more_networks_than_fit_are_refused_or_split(few_digits: Dataset) -> None:
    from lthfunc.experiments.iterative import Plan

    model = lf.models.lenet300((1, 8, 8), 10)
    data = ops.data_to_device(few_digits, "cuda")
    plan = Plan(model=model, trainer=make_trainer(model, data, optimizer=lf.adam(1e-3)), steps=10, eval_every=5)
    assert width_on(plan, 4, "cuda", asked=True) == 4
    with pytest.raises(lf.UserError, match="would fit: --jobs"):
        width_on(plan, 10_000_000, "cuda", asked=True)
    with pytest.warns(UserWarning, match="they train in groups of"):
        assert 4 < width_on(plan, 10_000_000, "cuda", asked=False) < 10_000_000


def test_controls_and_shuffles_run_on_the_device() -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    pruned = lf.prune(fraction=0.5)(lf.init(model, 0, "cuda"))
    assert lf.reinitialised(pruned, model, 1).params["fc1.weight"].is_cuda
    shuffled = lf.shuffled_masks(pruned.masks, 0)
    assert lf.layer_counts(shuffled) == lf.layer_counts(pruned.masks)
    random = lf.prune(fraction=0.5, score=lf.random_scores(0))(pruned)
    here = lf.prune(fraction=0.5, score=lf.random_scores(0))(ops.to_device(pruned, "cpu"))
    assert lf.same_bits(ops.to_device(random.masks, "cpu"), here.masks)


def test_the_command_line_runs_seeds_and_controls_together_and_resumes(tmp_path: Path) -> None:
    from lthfunc_cli.main import main

    out = tmp_path / "run"
    options = ["--device", "cuda", "--rounds", "1", "--steps", "30", "--rewind", "step:5", "--control", "random-mask"]
    assert main(["prune", *options, "--replicates", "3", "--out", str(out)]) == 0
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:2]))
    assert main(["resume", str(out)]) == 0
    assert len((out / "metrics.jsonl").read_text().splitlines()) == len(lines)


@pytest.mark.parametrize("method", ["imp", "snip", "grasp", "synflow", "rigl", "ste", "supermask", "edge-popup"])
def test_methods_end_at_the_density_on_a_gpu(method: str) -> None:
    from method_plans import outcome

    from lthfunc.experiments.config import Config
    from lthfunc.experiments.plan import prepare
    from lthfunc.experiments.resolve import resolved

    rounds = 2 if method == "imp" else 1
    given = Config(method=method, density=0.1, rounds=rounds, steps=20, engine="eager", device="cuda")
    masks = outcome(prepare(resolved(given)).plan, 0, "cuda").masks
    whole = lf.count(masks)
    assert whole.kept == pytest.approx(0.1 * whole.total, abs=1)
    assert all(mask.device.type == "cuda" for mask in masks.values())


@pytest.mark.parametrize(
    ("arch", "engine"),
    [
        *((arch, "eager") for arch in ("alexnet", "vgg16", "densenet121", "wrn-22-2", "vit-tiny", "char-transformer")),
        *((arch, "compile") for arch in ("vit-tiny", "char-transformer")),  # of one block, compiled in seconds
    ],
)
def test_networks_of_every_kind_train_alone_and_side_by_side(
    arch: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "compile":
        monkeypatch.setitem(NARROW, arch, {"layers": "1"})
    model, data = small_case(arch)
    data = ops.data_to_device(data, "cuda")
    starts = [lf.prune(density=0.2)(lf.init(model, seed, "cuda")) for seed in (0, 1)]
    trainer = make_trainer(model, data, optimizer=lf.sgd(0.01, 0.9), batch_size=8, engine=engine)
    together = fit_together(trainer, starts, seeds=[0, 1], until=4, eval_every=2)
    alone = fit(trainer, starts[1], seed=1, until=4, eval_every=2)
    for name, mask in starts[1].masks.items():
        assert not together[1].state.params[name][~mask].any()
    if arch != "alexnet":  # dropout draws other numbers for several networks
        for name, leaf in alone.state.params.items():
            torch.testing.assert_close(together[1].state.params[name], leaf, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("optimizer", [lf.muon(0.02), lf.lion(1e-3)], ids=["muon", "lion"])
def test_other_optimisers_keep_pruned_weights_zero(few_digits: Dataset, optimizer: lf.Optimizer) -> None:
    data = ops.data_to_device(few_digits, "cuda")
    model = lf.models.lenet300(data.shape)
    start = lf.prune(density=0.2)(lf.init(model, 0, "cuda"))
    for engine in ("eager", "compile"):
        end = lf.train(model, data, optimizer=optimizer, steps=70, engine=engine)(start)
        for name, mask in start.masks.items():
            assert not end.params[name][~mask].any()


@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_a_training_goes_on_from_its_checkpoint_on_a_gpu(few_digits: Dataset, tmp_path: Path, engine: str) -> None:
    model = lf.from_module(DroppingNet())
    trainer = make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=24, engine=engine)
    trainer = trainer._replace(data=ops.data_to_device(few_digits, "cuda"))
    plan = Plan(model, trainer, steps=300, eval_every=150)
    start = lf.init(model, 0, "cuda")
    task = Task(0, 1, "ticket", lf.prune(fraction=0.5)(start), start)
    (whole,) = train_together(plan, [task])
    seen = 0

    def observe(number: int, point: object) -> None:
        nonlocal seen
        seen = number

    with pytest.raises(Stopped):
        train_with_checkpoints(
            Execution(Config(checkpoint_every="never"), plan, tmp_path, lambda: seen >= 200), [task], observe
        )
    (again,), _ = train_with_checkpoints(Execution(Config(), plan, tmp_path), [task])
    for name, leaf in whole.fit.state.params.items():
        torch.testing.assert_close(again.fit.state.params[name], leaf)
    assert [point.step for point in again.fit.curve] == [point.step for point in whole.fit.curve]


def test_a_step_that_is_not_finite_is_found_on_a_gpu(few_digits: Dataset, tmp_path: Path) -> None:
    model = lf.from_module(NormedNet())
    trainer = make_trainer(model, ops.data_to_device(few_digits, "cuda"), optimizer=lf.sgd(1e30), batch_size=24)
    with pytest.raises(UserError, match=r"training diverged: the (loss|gradient).* of step \d+ is not finite"):
        fit(trainer, lf.init(model, 0, "cuda"), seed=0, until=20, eval_every=10)


def test_energy_is_metered_on_the_device(tmp_path: Path) -> None:
    pytest.importorskip("codecarbon")
    folder = tmp_path / "run"
    given = [
        "--rounds",
        "1",
        "--steps",
        "300",
        "--replicates",
        "2",
        "--device",
        "cuda",
        "--energy",
        "--out",
        str(folder),
    ]
    assert main(["prune", *given]) == 0
    for item in read_run(folder)[2]:
        energy = item["energy"]
        assert "NVML" in energy["source"]
        assert 0 < energy["training"]["gpu"] < energy["training"]["kwh"]
    assert main(["energy", str(folder), "--device", "cuda", "--samples", "20000", "--repeats", "2"]) == 0
    (measured,), _ = measurements(folder)
    assert measured["formats"]["dense"]["gpu"]["mean"] > 0


def test_sums_over_ranks_run_on_the_device(tmp_path: Path) -> None:
    """Over NCCL: alone with its GPU a rank sums with itself."""
    from torch import distributed

    where = f"file://{tmp_path}/store"
    distributed.init_process_group("nccl", init_method=where, rank=0, world_size=1)
    try:
        collectives = lf.collectives()
        vector, index = torch.arange(6.0, device="cuda"), torch.tensor([1, 4], device="cuda")
        assert torch.equal(collectives.all_reduce(vector), vector)
        assert collectives.all_reduce_at(vector, index).tolist() == [0, 1, 0, 0, 4, 0]
        assert torch.equal(collectives.all_gather(vector), vector)
        assert torch.equal(collectives.reduce_scatter(vector), vector)
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_run_on_two_gpus_is_a_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "lthfunc_cli", "prune"]
    options = [
        "--rounds",
        "1",
        "--steps",
        "200",
        "--device",
        "cuda",
        "--engine",
        "compile",
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=HANG)
    assert done.returncode == 0, done.stderr
    assert "on 2 ranks" in done.stderr
