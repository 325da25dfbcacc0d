"""GPU kernels without a GPU: interpreted, held to float64; assembled for three kinds of card; refused in one line."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.gpu.bits import pack_bits, unpack_bits, words
from lthfunc.sparse.gpu.block_linear import block_linear, block_pattern
from lthfunc.sparse.gpu.masked_adam import masked_adam
from lthfunc.sparse.gpu.masked_linear import masked_linear
from lthfunc.sparse.gpu.resident import pack_resident, resident_steps
from lthfunc.training.optimizers import AdamNumbers

CASES = sorted(path.name for path in Path(__file__).parent.glob("cases_*.py"))


def test_the_interpreter_agrees_with_float64() -> None:
    """In a process of its own, since Triton decides at its import who runs kernels."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", *CASES],
        capture_output=True, text=True, check=False, env=environment, cwd=Path(__file__).parent,
    )  # fmt: skip
    if "only 0-dimensional arrays can be converted" in done.stdout:
        pytest.skip("this Triton's interpreter runs with NumPy before 2.4")
    assert done.returncode == 0, done.stdout + done.stderr
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert all("asks a card for its properties" in line for line in skipped), skipped
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 80


def test_a_card_runs_every_case() -> None:
    """All of them are collected there: none hides another of its name."""
    import test_gpu_kernels_on_card as on_card

    # A card runs the benchmark as it is, and torch's kernel by test_gpu.py.
    files = {name.removesuffix(".py") for name in CASES} - {"cases_benchmark", "cases_torch_blocks"}
    assert files == set(on_card.CASES)
    for file in files:
        for name, case in vars(importlib.import_module(file)).items():
            assert not name.startswith("test_") or getattr(on_card, name) is case, f"{file}: {name}"


@pytest.fixture
def folder_of_triton(tmp_path: Path) -> Iterator[None]:
    """What Triton keeps goes into a folder of the test."""
    triton = pytest.importorskip("triton")
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        yield


#: What is assembled here, by name and compute capability, and what multiplies in it. `python tests/gpu_kernels.py`
#: assembles everything.
ASSEMBLED = [
    ("masked_adam relu decoupled float32 ieee", 80, ""),
    ("masked_adam bfloat16 ieee", 90, "wgmma.mma_async"),
    ("masked_adam float16 ieee", 100, "tcgen05.mma"),
    ("masked_linear relu small bfloat16 ieee", 80, "mma.sync"),
    ("masked_linear relu float32 ieee", 90, ""),
    ("masked_linear relu float32 tf32", 100, "tcgen05.mma"),
    ("block_linear 128 float32 ieee", 80, ""),
    ("block_linear 64 bfloat16 ieee", 90, "wgmma.mma_async"),
    ("block_linear 128 float16 ieee", 100, "tcgen05.mma"),
    ("resident adam", 80, ""),
    ("resident momentum", 90, ""),
    ("resident adamw", 100, ""),
]


@pytest.mark.parametrize(
    ("name", "capability", "instruction"),
    # One in three suffices: others take another generation of cards or another type of numbers.
    [pytest.param(*each, marks=pytest.mark.long if number % 3 else ()) for number, each in enumerate(ASSEMBLED)],
)
def test_kernels_are_assembled(name: str, capability: int, instruction: str, folder_of_triton: None) -> None:
    """As they would be launched: within the card's shared memory and registers, and on its tensor cores."""
    from gpu_kernels import CAPABILITIES, assemble, calls, launches

    launched = launches(dict(calls())[name])
    assert len(launched) == (3 if "linear" in name else 1)
    for launch in launched:
        found = assemble(launch, capability)
        assert found.shared <= CAPABILITIES[capability], found.name
        assert found.spilled == 0, found.name
        assert 0 < found.registers <= 255
        assert found.barriers == (5 if name.startswith("resident") else 0), found.name
        assert found.tensor_cores == (instruction), found.name


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 64, 100])
def test_masks_as_bits(columns: int) -> None:
    mask = torch.rand(3, 5, columns, generator=torch.Generator().manual_seed(columns)) < 0.5
    bits = pack_bits(mask)
    assert bits.dtype == torch.int32
    assert bits.shape == (3, 5, words(columns))
    assert torch.equal(unpack_bits(bits, columns), mask)
    for word in range(words(columns)):
        part = mask[1, 2, 32 * word : 32 * word + 32]
        assert int(bits[1, 2, word]) % 2**32 == sum(2**place for place, left in enumerate(part.tolist()) if left)


def test_what_are_no_bits_is_told() -> None:
    for wrong in (torch.ones(3), torch.tensor(True)):
        with pytest.raises(UserError, match="mask: takes bools of one dimension or more"):
            pack_bits(wrong)
    for bits, columns in ((torch.zeros(2, 2).int(), 32), (torch.zeros(2, 1).int(), 33), (torch.zeros(2, 1), 32)):
        with pytest.raises(UserError, match=r"bits: takes int32 of . words a row for 3. weights, not"):
            unpack_bits(bits, columns)


def _adam() -> Any:
    square, one = torch.zeros(8, 8), torch.ones(2)
    numbers = AdamNumbers((0.9, 0.999), 1e-8, 0.0, False)
    return masked_adam(square, square, torch.zeros(8, 1).int(), square, square, square, one[0], one, numbers)


def _linear() -> Any:
    return masked_linear(torch.zeros(8, 8), torch.zeros(8, 8), torch.zeros(8, 1).int())


def _blocks() -> Any:
    pattern = block_pattern(torch.ones(32, 32, dtype=torch.bool), 32)
    return block_linear(torch.zeros(8, 32), torch.zeros(1, 32, 32), pattern)


def _resident() -> Any:
    state = lf.init(lf.models.lenet300((1, 2, 2), 3))
    return resident_steps(pack_resident([state], lf.sgd(0.1)), torch.zeros(1, 2, 4), torch.zeros(1, 2).long())


@pytest.mark.parametrize("call", [_adam, _linear, _blocks, _resident])
def test_without_triton_or_a_card_they_refuse(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with pytest.raises(UserError, match=r"takes tensors on a CUDA device, not on cpu \(TRITON_INTERPRET=1 runs"):
        call()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match=r"lthfunc.sparse.gpu: needs Triton, which is not installed \(pip install"):
        call()
