"""How many networks are trained side by side: as many as a GPU's memory holds, told by an allocator like torch's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, rounds
from lthfunc.scheduling import execute, gpu_memory, local
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution, Queue
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import Dataset

#: Bytes of the pretended GPU, of its data set, of what libraries allocate for good, of a first step, and of a step.
GPU, DATA, KEPT, FIRST, STEP = 80_000_000_000, 1_000_000_000, 500_000_000, 60_000_000_000, 4_000_000_000


class Allocator:
    """As torch's: what is freed stays the process's until `empty_cache`, and a peak is kept until it is reset."""

    def __init__(self) -> None:
        self.reserved = self.allocated = self.peak = DATA
        self.warm = False

    def hold(self, size: int) -> None:
        self.allocated += size
        self.reserved, self.peak = max(self.reserved, self.allocated), max(self.peak, self.allocated)
        if self.reserved > GPU:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def step(self, *arguments: Any, **settings: Any) -> None:
        """Take a step: the first tries out algorithms with large workspaces."""
        if not self.warm:
            self.hold(KEPT)
        size = STEP if self.warm else FIRST
        self.hold(size)
        self.allocated -= size
        self.warm = True

    def reset_peak(self, device: str) -> None:
        self.peak = self.allocated

    def empty_cache(self) -> None:
        self.reserved = self.allocated


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    made = Allocator()
    stands = {
        "synchronize": lambda device: None, "empty_cache": made.empty_cache,
        "reset_peak_memory_stats": made.reset_peak, "memory_allocated": lambda device: made.allocated,
        "max_memory_allocated": lambda device: made.peak, "mem_get_info": lambda device: (GPU - made.reserved, GPU),
    }  # fmt: skip
    for name, value in stands.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(gpu_memory, "init", lambda *arguments: None)
    monkeypatch.setattr(gpu_memory, "take_steps", made.step)
    return made


@pytest.fixture
def plan(few_digits: Dataset) -> Plan:
    model = lf.models.lenet300((1, 8, 8), 10)
    trainer = make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=40)
    return Plan(model, trainer, steps=4, eval_every=4, rounds=0)


def test_a_steps_own_memory_counts_and_the_cache_is_free(allocator: Allocator, plan: Plan) -> None:
    assert gpu_memory.memory_of_one(plan, "cuda") == (STEP, GPU - DATA - KEPT)


def test_as_many_networks_as_fit_or_even_groups_of_them(allocator: Allocator, plan: Plan) -> None:
    """78.5 GB are free, of which nine tenths hold 17 networks."""
    assert gpu_memory.width_on(plan, 17, "cuda", asked=True) == 17
    said = r"--jobs: 18 networks .* need about 72\.0 GB, but cuda has 78\.5 GB free; about 17 would fit: --jobs 17$"
    with pytest.raises(UserError, match=said):
        gpu_memory.width_on(plan, 18, "cuda", asked=True)
    for jobs, width in ((18, 9), (35, 12), (34, 17)):
        with pytest.warns(UserWarning, match=rf"they train in groups of {width} \(--jobs"):
            assert gpu_memory.width_on(plan, jobs, "cuda", asked=False) == width


def test_one_network_that_does_not_fit_is_named(allocator: Allocator, plan: Plan) -> None:
    allocator.hold(GPU - FIRST)
    with pytest.raises(UserError, match=r"one network doesn't fit in the memory of cuda:1; try a smaller --batch-size"):
        gpu_memory.width_on(plan, 2, "cuda:1", asked=False)


def test_without_jobs_replicates_train_in_groups_that_fit(
    plan: Plan, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the command does it on a GPU, but on the CPU's memory: five replicates, of which two fit."""
    monkeypatch.setattr(gpu_memory, "memory_of_one", lambda plan, device: (4, 9))
    groups: list[int] = []

    def counting(run: Execution, tasks: Any, *rest: Any) -> Any:
        groups.append(len(tasks))
        return train_with_checkpoints(run, tasks, *rest)

    monkeypatch.setattr(local, "train_with_checkpoints", counting)

    config = Config(device="cuda", replicates=5)
    queue = Queue({seed: rounds(plan, seed) for seed in range(5)})
    with pytest.warns(UserWarning, match="groups of 2"):
        results = list(execute.results_of(Execution(config, plan, tmp_path), queue, 5))
    assert sorted(result.task.seed for result in results) == list(range(5))
    assert groups == [2, 2, 1]
