"""What is decided by the device, on pretended GPUs: formats, precisions, engines, jobs, ranks, and what is recorded."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretended import Machine
from torch import distributed, nn

import lthfunc as lf
from lthfunc.deployment.formats import BLOCK, SEMI_STRUCTURED, MaskedLayer
from lthfunc.deployment.tuning_cache import machine_key
from lthfunc.distributed.collectives import SINGLE_RANK
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.devices import _check_ranks
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.runs import environment
from lthfunc.scheduling import ranks, ray as cluster
from lthfunc.scheduling.execute import jobs_of
from lthfunc.scheduling.queue import PLANNED, Execution
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.toolchain import why_not
from lthfunc.training.precision import check_precision
from lthfunc.training.results import SinceLastPoint
from lthfunc.training.session import TrainingSession
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.ops import data_to_device, to_device
from lthfunc.trees.types import Dataset


def half(
    rows: int, columns: int, *, device: str = "cuda:1", dtype: torch.dtype = torch.float16, every: int = 2
) -> MaskedLayer:
    """A linear layer of which every so-manieth weight of a row is left."""
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    mask[:, ::every] = True
    return MaskedLayer("fc", nn.Linear(columns, rows), mask, torch.zeros(8, columns, dtype=dtype, device=device))


def test_two_of_four_says_what_it_needs(gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    why_not = SEMI_STRUCTURED.why_not
    assert why_not(half(32, 64)) is None
    assert why_not(half(32, 64, dtype=torch.bfloat16)) is None
    assert why_not(half(32, 64, device="cpu")) == "needs a CUDA device"
    assert why_not(half(32, 64, dtype=torch.float32)) == "takes float16 or bfloat16, not float32"
    assert why_not(half(16, 64)) == "needs multiples of 32 outputs and 64 inputs, not 16×64"
    assert why_not(half(32, 64, every=1)) == "needs a mask with at most 2 of every 4 weights (structure 2:4)"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    assert why_not(half(32, 64)) == "needs compute capability 8.0"
    assert BLOCK.why_not(half(32, 64, dtype=torch.float64)) == (
        "on a GPU takes float16, bfloat16 or float32, not float64"
    )


def test_precisions_are_those_of_the_card(gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "tf32", "bf16"):
        check_precision(precision, "cuda:1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(UserError, match=r"^precision: invalid value 'bf16' \(expected one of fp32 on cuda:1\)$"):
        check_precision("bf16", "cuda:1")


def test_compiling_for_a_gpu_takes_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", SimpleNamespace())
    assert why_not("cuda") == why_not("cpu")
    monkeypatch.setitem(sys.modules, "triton", None)
    assert why_not("cuda:1") == "triton is not installed"


def test_a_plan_lies_on_its_gpu(gpus: Machine) -> None:
    """Data that take more than half of its free memory would stay on the host."""
    prepared = prepare(resolved(Config(device="cuda:1", steps=20, engine="eager")))
    assert prepared.config.device == "cuda:1"
    assert prepared.plan.trainer.data.train.x.device == torch.device("cuda:1")
    assert gpus.current == 1
    assert environment.machine("cuda:1")["gpu"] == "a pretended GPU"
    assert machine_key(torch.device("cuda:1")).startswith("a pretended GPU, ")
    assert jobs_of(Config(device="cuda", replicates=3, compact=True), prepared.plan) == 1
    with pytest.raises(UserError, match=r"^--jobs: invalid value 2 .*1 with --compact"):
        resolved(Config(device="cuda", compact=True, jobs=2))


def test_each_rank_takes_a_gpu_of_its_own(gpus: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    two = SINGLE_RANK._replace(world_size=2)
    config = Config(device="cuda", batch_size=60, engine="eager")
    monkeypatch.setenv("LOCAL_RANK", "1")
    _check_ranks(config, two)
    with pytest.raises(UserError, match=r"^--device: invalid value 'cuda:1' .* each of which takes its own GPU"):
        _check_ranks(Config(device="cuda:1", batch_size=60, engine="eager"), two)
    monkeypatch.setattr(distributed, "init_process_group", lambda **settings: None)
    monkeypatch.setattr(ranks, "collectives", lambda: two)
    assert ranks.join_ranks() == two
    assert gpus.current == 1
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"^--device: this rank needs GPU number 2, and there are 2 GPUs$"):
        _check_ranks(config, two)


def test_a_cluster_is_asked_for_shares_of_gpus() -> None:
    held = {"CPU": 8.0, "GPU": 1.0}
    ray = SimpleNamespace(cluster_resources=lambda: held)
    config = Config(device="cuda", gpu_share=0.25, replicates=8)
    assert cluster._slots(ray, config, 8) == 4
    assert cluster._resources(config) == {"num_cpus": 1, "num_gpus": 0.25}
    assert cluster._resources(Config(device="cpu", threads=2)) == {"num_cpus": 2, "num_gpus": 0.0}
    held["GPU"] = 0.0
    with pytest.raises(UserError, match=r"^--executor: no node of the cluster has a GPU"):
        cluster._slots(ray, config, 8)
    asked: dict[str, Any] = {}

    class Executor(cluster.RayExecutor):
        def __init__(self) -> None:
            self._run = Execution(config, None, None, workload=PLANNED)
            self._ray = SimpleNamespace(
                remote=lambda kind: SimpleNamespace(
                    options=lambda **given: asked.update(given) or SimpleNamespace(remote=lambda *rest: None)
                )
            )

    Executor()._worker()
    assert (asked["num_cpus"], asked["num_gpus"]) == (1, 0.25)


def test_a_step_that_cannot_be_captured_is_launched_one_by_one(gpus: Machine) -> None:
    total = torch.zeros((), device="cuda:1")

    def program(total: torch.Tensor) -> tuple[()]:
        if total.item() >= 0:  # waits, which a capture refuses
            total.add_(1)
        return ()

    launcher = Launcher(program, [(total,)] * 3)
    assert launcher.launch(3, None) == 3
    with pytest.warns(UserWarning, match="no CUDA graph of this step: operation not permitted .*; launched one by one"):
        assert launcher.launch(3, None) == 3
    assert launcher.launch(3, None) == 3
    assert total.item() == 9


def test_random_layers_go_on_with_the_devices_generator(gpus: Machine, few_digits: Dataset) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    trainer = make_trainer(model, data_to_device(few_digits, "cuda:1"), optimizer=lf.sgd(0.1), batch_size=24)
    start = to_device(lf.init(model), "cuda:1")
    kept = torch.arange(16, dtype=torch.uint8)
    with (
        TrainingSession(trainer, [start], [0], 9, since=[SinceLastPoint(0.0, 3, kept)]) as training,
        training.drawing(),
    ):
        set_to = [state for device, state in gpus.generators if device == "cuda:1"]
        assert torch.equal(set_to[0], kept)
        assert training.now()[1][0].random.numel() == 0, "the device's own state is read"
    before = len(gpus.generators)
    with seeded_generators(0, torch.device("cuda:1")):
        pass
    assert [device for device, _ in gpus.generators[before:]] == ["cuda:1"], "put back afterwards"
