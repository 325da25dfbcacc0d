"""What runs on GPUs, on pretended ones: on the right one, nothing mixed, waiting seldom, with the right batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pretended import Machine
from torch import Tensor

from lthfunc.training.batches import batches
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.types import Split


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_captured_program_does_what_it_does_uncaptured(gpus: Machine, device: str) -> None:
    total = torch.zeros(3, device=device)
    batches = [torch.full((3,), float(slot + 1), device=device) for slot in range(4)]

    def program(total: Tensor, batch: Tensor) -> tuple[()]:
        total.add_(batch)
        return ()

    launcher = Launcher(program, [(total, batch) for batch in batches])
    for _ in range(5):
        assert launcher.launch(4, None) == 4
    assert launcher.launch(2, None) == 2
    assert total.tolist() == [5 * 10 + 3] * 3
    assert gpus.captures == [(4, "thread_local")]
    assert gpus.current == 0


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_streamed_batches_are_those_of_their_steps(gpus: Machine, device: str) -> None:
    split = Split(torch.arange(250).float().view(50, 5), torch.arange(50))
    prefetcher = Prefetcher(split, 8, (5,), torch.device(device))
    taken = []
    for start in range(0, 60, 4):
        prefetcher.fill(start, start + 4, 60)
        taken += [(x.clone(), y.clone()) for x, y in prefetcher.batches[:4]]
    prefetcher.close()
    for (x, y), (want_x, want_y) in zip(taken, batches(split, 8, 5, 0, 60), strict=True):
        assert torch.equal(y.cpu(), want_y)
        assert torch.equal(x.cpu(), want_x)


def test_on_an_accelerator_nothing_mixes_and_results_are_the_cpus() -> None:
    """Nor does a step wait, nor a look for each network or leaf. All in one process, whose start takes seconds."""
    done = subprocess.run(
        [sys.executable, "accelerated.py"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
