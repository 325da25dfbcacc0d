"""What runs on GPUs, on pretended ones: on the right one, nothing mixed, waiting seldom, with the right batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import NormedNet
from pretended import Machine, accelerator, pretended
from torch import Tensor

import lthfunc as lf
from lthfunc.training.batches import batches
from lthfunc.training.engines.launching import Launcher
from lthfunc.training.feed import Feed
from lthfunc.training.loop import fit_together
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.ops import data_to_device, to_device
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
    assert [(len(graph.work), mode) for graph, mode in gpus.captures] == [(4, "thread_local")]
    assert gpus.current == 0


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_streamed_batches_are_those_of_their_steps(gpus: Machine, device: str) -> None:
    split = Split(torch.arange(250).float().view(50, 5), torch.arange(50))
    feed = Feed(split, 8, (5,), torch.device(device))
    taken = []
    for start in range(0, 60, 4):
        feed.fill(start, start + 4, 60)
        taken += [(x.clone(), y.clone()) for x, y in feed.batches[:4]]
    feed.close()
    for (x, y), (want_x, want_y) in zip(taken, batches(split, 8, 5, 0, 60), strict=True):
        assert torch.equal(y.cpu(), want_y)
        assert torch.equal(x.cpu(), want_x)


def train_on_an_accelerator(*seeds: int) -> None:
    """Train on the CPU and on the accelerator, and compare results; mixing devices raises, waits are counted."""
    digits = lf.data.load("digits")
    data = digits._replace(train=Split(*(part[:240] for part in digits.train)))
    model = lf.from_module(NormedNet())
    starts = [lf.prune(fraction=0.5)(lf.init(model, seed)) for seed in seeds]
    steps, looks = 24, 3
    with pretended(accelerator()) as machine:
        fits = {}
        for where in ("cpu", f"{machine.kind}:0"):
            trainer = make_trainer(model, data_to_device(data, where), optimizer=lf.adam(1e-4), batch_size=40)
            states = to_device(starts, where)
            machine.waits.clear()
            fits[where] = fit_together(trainer, states, seeds=seeds, until=steps, eval_every=steps // looks)
        waits = {line: count for line, count in machine.waits.items() if line.startswith("lthfunc/")}
        for here, there in zip(*fits.values(), strict=True):
            for name, leaf in here.state.params.items():
                torch.testing.assert_close(there.state.params[name].cpu(), leaf, rtol=1e-4, atol=1e-5)
    # Neither a step waits, nor a look for each leaf or each network: a line waits once a look, and where it begins.
    assert 0 < max(waits.values()) <= looks + 1, "\n".join(map(str, waits.items()))


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_a_training_mixes_no_devices_and_waits_only_at_looks(seeds: tuple[int, ...]) -> None:
    """In a process of its own, since PyTorch counts devices once, as it first differentiates."""
    code = f"from test_pretended_gpu import train_on_an_accelerator as run; run({', '.join(map(str, seeds))})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
