"""Parts that speak to GPUs, on pretended ones: what is timed, which blocks a kernel takes, what NCCL is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lthfunc_benchmarks import floors
from pretended import Machine
from torch import distributed, nn

from lthfunc.errors import LostRankError, UserError
from lthfunc.execution.formats import LAYER_FORMATS, Layer, block_size
from lthfunc.execution.timing import in_turn, repeated
from lthfunc.experiments.plan import choose_device
from lthfunc.runs import ranks
from lthfunc.trees.shards import ALONE


def counting(device: str) -> tuple[torch.Tensor, Any]:
    total = torch.zeros((), device=device)
    return total, lambda: total.add_(1)


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_a_timing_ends_when_its_own_device_has_finished(gpus: Machine, device: str) -> None:
    total, add = counting(device)
    stream = gpus.stream(total.device.index)
    before = stream.begun
    in_turn({"add": repeated(add)}, seconds=1e-9, repeats=2, device=device)
    assert stream.begun > before
    assert not stream.waiting
    floors._seconds(add, device)
    assert not stream.waiting
    assert floors.reading_rate(4096, device) > 0
    assert not stream.waiting


def test_the_chosen_gpu_is_the_current_one(gpus: Machine) -> None:
    """So that streams and memory of code that names no device are those of the training's."""
    assert [choose_device(name) for name in ("auto", "cuda:0")] == ["cuda", "cuda:0"]
    assert gpus.current == 0
    assert choose_device("cuda:1") == "cuda:1"
    assert gpus.current == 1
    assert choose_device("cpu") == "cpu"
    assert choose_device("cuda") == "cuda"
    with pytest.raises(UserError, match=r"'cuda:2' is not accepted; it takes one of auto, cpu, cuda, cuda:0, cuda:1"):
        choose_device("cuda:2")
    assert gpus.current == 1


def layer(device: str, side: int, dtype: torch.dtype = torch.float16) -> Layer:
    """A layer of 64 × 64 weights in blocks of a side, of each two by two of which one is left."""
    number = torch.arange(64 // side)
    kept = (number[:, None] + 2 * number) % 4 == 0
    mask = kept.repeat_interleave(side, 0).repeat_interleave(side, 1)
    return Layer("fc", nn.Linear(64, 64), mask, torch.zeros(8, 64, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_blocks_that_a_gpus_kernel_refuses_are_not_offered(gpus: Machine, dtype: torch.dtype) -> None:
    """Triton's dot takes no fewer than 16 values, which torch's product of blocks doesn't check."""
    for side in (32, 16):
        assert block_size(layer("cuda:0", side, dtype)) == side
    for side in (8, 4):
        assert block_size(layer("cpu", side, torch.float32)) == side
        assert block_size(layer("cuda:0", side, dtype)) is None
        reason = LAYER_FORMATS["block"].why_not(layer("cuda:0", side, dtype))
        assert reason is not None
        assert "finds no size of blocks (64, 32, 16) that divides 64×64" in reason


#: torch's own kernel of blocks, interpreted, on any number of examples: it would refuse parts of blocks.
_INTERPRETED = """
import torch
import torch.utils._triton
torch.utils._triton.has_triton = lambda: True
import torch.sparse._triton_ops as ops
from lthfunc.execution.formats import block_sizes, in_whole_blocks

ops._get_device_name = ops.get_meta = lambda *given, **named: None
kernel = ops._bsr_strided_addmm_kernel


class Launched:
    def __getitem__(self, grid):
        return kernel[tuple(grid)]


ops._bsr_strided_addmm_kernel = Launched()
torch.manual_seed(0)
for size in block_sizes(torch.device("cuda")):
    weight = torch.randn(2 * size, 2 * size).half()
    weight[:size, :size] = 0
    for examples in (1, 7, 48, 100):
        x = torch.randn(examples, 2 * size).half()
        rows = in_whole_blocks(x, size)
        found = ops.bsr_dense_mm(weight.to_sparse_bsr((size, size)), rows.T.contiguous(), skip_checks=True).T[:examples]
        torch.testing.assert_close(found, (x.double() @ weight.double().T).half(), rtol=1e-2, atol=1e-2)
        print(size, examples)
"""


def test_the_gpus_kernel_takes_every_block_on_any_number_of_examples() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _INTERPRETED], capture_output=True, text=True, check=False, env=environment,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 * 4


def test_nccls_watchdog_leaves_the_process_to_say_what_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str | None] = []

    def group(**settings: Any) -> None:
        told.append(os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING"))
        raise ValueError("nobody there")

    monkeypatch.setattr(distributed, "init_process_group", group)
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "1")
    for given in (None, "1"):
        if given is None:
            monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
        else:
            monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", given)
        with pytest.raises(UserError, match="find together at here:1"):
            ranks.join()
    assert told == ["2", "1"], "a user's own choice stays"


@pytest.mark.parametrize(
    "error",
    [
        distributed.DistBackendError("NCCL communicator was aborted on rank 0. Original reason: remote process exited"),
        RuntimeError("NCCL communicator was aborted after a previous error"),
    ],
)
def test_a_collective_that_nccl_gave_up_is_a_lost_rank(error: RuntimeError) -> None:
    said = r"another rank is gone \(NCCL communicator was aborted"
    with pytest.raises(LostRankError, match=said), ranks.together(ALONE._replace(ranks=2)):
        raise error
