"""The compiled engine compiles once, for all masks and processes, and computes by the rules of its own."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NormedNet, noted
from test_engines import needs_compiler, same_numbers, trainer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lthfunc as lf
from lthfunc import hardware
from lthfunc.catalog.pruning import CONTROLS
from lthfunc.catalog.training import ENGINES
from lthfunc.errors import UserError
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.trainings import iterative
from lthfunc.training.engines import compiled as compiled_engine, gemm
from lthfunc.training.engines.im2col import convolution_backward
from lthfunc.training.engines.pooling import max_pool, max_pool_backward
from lthfunc.training.engines.tracing import compiled
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import measure
from lthfunc.trees.types import Dataset

DENSE = [name for name in ENGINES if not name.startswith("sparse")]


@needs_compiler
@pytest.mark.slow
def test_a_whole_run_compiles_one_step_and_one_evaluation(
    digits: Dataset, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds, seeds, controls, masks and rewinding change nothing: they are data."""
    made: list[str] = []
    monkeypatch.setattr(compiled_engine, "compiled", lambda *a: (noted(made, a[0].__name__), a[0])[1])
    model = lf.from_module(NormedNet())
    data = few_digits._replace(val=digits.train, test=digits.train)  # more than a chunk, and some left over
    plan = Plan(model=model, trainer=trainer(model, data, "compile"), steps=12, eval_every=6, rounds=2)
    plan = plan._replace(
        controls={name: start_of(CONTROLS, name) for name in ("reinit", "random-mask", "shuffled-mask")}
    )
    for seed in (0, 1):
        assert len(list(iterative(plan, seed))) == 1 + 2 * 4
    assert sorted(made) == ["flat", "in_place"]


@needs_compiler
def test_an_evaluation_in_chunks_is_the_eager_one(digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    state, split = lf.init(model), digits.train  # more than a chunk, and some left over
    found, eager = (
        measure(trainer(model, digits, name), [state], split)[0] for name in ("compile, interpreted", "eager")
    )
    assert tuple(found) == pytest.approx(tuple(eager), rel=1e-5)
    assert found[0] != pytest.approx(found[1], rel=0.1), "loss and accuracy are told apart"


@needs_compiler
@pytest.mark.long
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "import torch, lthfunc as lf\n"
        "from lthfunc.training.loop import take_steps\n"
        "from lthfunc.training.trainer import make_trainer\n"
        "from torch._dynamo.utils import counters\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "data, model = lf.data.load('digits'), lf.from_module(net)\n"
        "trainer = make_trainer(model, data, optimizer=lf.adam(LR), engine='compile')\n"
        "take_steps(trainer, lf.prune(fraction=LR * 100)(lf.init(model, SEED)), seed=SEED, until=2)\n"
        "print(counters['inductor']['fxgraph_cache_hit'], counters['inductor']['fxgraph_cache_miss'])\n"
    )
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    environment["TORCHINDUCTOR_VEC_ISA_OK"] = os.environ["TORCHINDUCTOR_VEC_ISA_OK"]
    said = []
    for lr, seed in (("1e-3", "0"), ("2e-3", "1")):
        text = code.replace("LR", lr).replace("SEED", seed)
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert said == [["0", "1"], ["1", "0"]]


@needs_compiler
@pytest.mark.long
def test_two_compiled_models_in_one_process_stay_apart(few_digits: Dataset) -> None:
    for classes in (10, 11):
        model = lf.models.lenet300((1, 8, 8), classes)
        first, _ = take_steps(trainer(model, few_digits, "compile", lf.sgd(0.01)), lf.init(model), seed=0, until=5)
        second, _ = take_steps(trainer(model, few_digits, "eager", lf.sgd(0.01)), lf.init(model), seed=0, until=5)
        same_numbers(first, second)


@pytest.mark.parametrize("nans", [0.0, 0.3])
@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("size", [(8, 8), (6, 9), (7, 8)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_pooling_rules_have_the_bits_of_pytorchs_own(
    channels: int, size: tuple[int, int], layout: torch.memory_format, nans: float
) -> None:
    """Ties (zeros, as ReLU makes them) go to the first, NaN before all; what does not tile is left to PyTorch."""
    kernel = [2, 3] if size[1] == 9 else [2, 2]
    random = torch.Generator().manual_seed(0)
    x = torch.randn(5, channels, *size, generator=random).relu()
    x = x.masked_fill(torch.rand(x.shape, generator=random) < nans, math.nan).contiguous(memory_format=layout)
    out, indices = torch.ops.aten.max_pool2d_with_indices(x, kernel)
    grad = torch.randn_like(out)
    rest = (kernel, kernel, [0, 0], [1, 1], False, indices)
    found, forward = max_pool_backward(grad, x, *rest), max_pool(x, kernel)
    if layout == torch.contiguous_format or size == (7, 8):
        assert found is forward is NotImplemented
    else:
        assert torch.equal(found, torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *rest))
        assert (forward is NotImplemented) == (channels == 3)
        if channels == 64:
            for ours, theirs in zip(forward, (out, indices), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
                assert ours.stride() == theirs.stride()
    assert max_pool_backward(grad, x, kernel, [1, 1], *rest[2:]) is NotImplemented
    assert max_pool_backward(grad, x, kernel, kernel, [1, 1], *rest[3:]) is NotImplemented


@pytest.mark.skipif(not gemm.has_one_dnn(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize(
    ("channels", "window", "stride", "padding"),
    [(1, (3, 3), (1, 1), (1, 1)), (3, (3, 2), (2, 1), (0, 2)), (1, (5, 5), (3, 2), (2, 2))],
)
def test_a_first_convolutions_gradient_is_a_product(
    channels: int, window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4, channels, 9, 8, generator=random)
    weight = torch.randn(64, channels, *window, generator=random).contiguous(memory_format=torch.channels_last)
    out = torch.nn.functional.conv2d(x, weight, None, stride, padding)
    grad = torch.randn(out.shape, generator=random).contiguous(memory_format=torch.channels_last)

    def arguments(weight: torch.Tensor, grad: torch.Tensor, *wanted: bool, dilation: int = 1) -> tuple[Any, ...]:
        return grad, x, weight, [len(weight)], stride, padding, [dilation] * 2, False, [0, 0], 1, list(wanted)

    given = arguments(weight, grad, False, True, True)
    images, of_weight, of_bias = convolution_backward(*given)
    _, *expected = torch.ops.aten.convolution_backward(*given)
    assert images is None
    torch.testing.assert_close([of_weight, of_bias], expected, rtol=1e-4, atol=1e-4)
    assert convolution_backward(*arguments(weight, grad, False, True, False))[2] is None
    few = arguments(weight[:8], grad[:, :8], False, True, True)
    for other in (arguments(weight, grad, True, True, True), few, arguments(weight, grad, False, True, dilation=2)):
        assert convolution_backward(*other) is NotImplemented


@needs_compiler
@pytest.mark.long
def test_a_pooled_network_equals_the_eager_step(few_digits: Dataset) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    model = lf.from_module(net)
    found = [take_steps(trainer(model, few_digits, name), lf.init(model), seed=0, until=30)[0] for name in DENSE]
    same_numbers(*found)


@pytest.mark.parametrize(
    ("maker", "family", "flags", "wide"),
    [
        ("AuthenticAMD", "26", "avx2 avx512f avx512bw", True),
        ("AuthenticAMD", "25", "avx2 avx512f", False),
        ("AuthenticAMD", "26", "avx2", False),
        ("GenuineIntel", "6", "avx512f", False),
        ("GenuineIntel", "26", "avx512f", False),
    ],
)
def test_wide_cores_are_known_by_what_linux_says(
    monkeypatch: pytest.MonkeyPatch, maker: str, family: str, flags: str, *, wide: bool
) -> None:
    facts = {"vendor_id": maker, "cpu family": family, "flags": flags}
    monkeypatch.setattr(hardware, "processor_facts", lambda: facts)
    assert hardware.has_wide_amd_cores() is wide
    monkeypatch.setattr(hardware, "processor_facts", dict)
    assert not hardware.has_wide_amd_cores()


@pytest.mark.skipif(not gemm.has_one_dnn(), reason="this PyTorch has no oneDNN")
def test_products_are_one_dnns_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large float32 ones on processors whose width PyTorch's own leave half unused; transposed operands too."""
    a, b, bias = torch.randn(128, 100), torch.randn(100, 128), torch.randn(128)
    monkeypatch.setattr(gemm, "has_wide_amd_cores", lambda: False)
    assert gemm.mm(a, b) is NotImplemented
    monkeypatch.setattr(gemm, "has_wide_amd_cores", lambda: True)
    for left, right in ((a, b), (b.t(), a.t()), (a, a.t()), (a.t(), a)):
        torch.testing.assert_close(gemm.mm(left, right), left @ right)
    torch.testing.assert_close(gemm.addmm(bias, a, b), bias + a @ b)
    assert gemm.mm(a[:70], b) is gemm.mm(a.double(), b.double()) is NotImplemented
    assert gemm.addmm(bias, a, b, beta=2) is gemm.addmm(a @ b, a, b) is NotImplemented


@needs_compiler
@pytest.mark.skipif(not gemm.has_one_dnn(), reason="this PyTorch has no oneDNN")
def test_a_compiled_product_is_called_without_a_detour() -> None:
    a, b, seen = torch.randn(33, 20), torch.randn(20, 17), []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(operation))
            return operation(*args, **(kwargs or {}))

    with torch.no_grad():
        program = compiled(lambda a, b: (torch.ops.lthfunc.gemm(a, b, None),), [a, b], "a product")
        with Seen():  # type: ignore[no-untyped-call]
            (found,) = program(a, b)
    torch.testing.assert_close(found, a @ b)
    assert [name for name in seen if "linear_pointwise" in name or "product" in name] == [
        "mkldnn._linear_pointwise.default"
    ]


@needs_compiler
@pytest.mark.parametrize("wide", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_step_equals_the_eager_one_by_either_librarys_products(
    few_digits: Dataset, monkeypatch: pytest.MonkeyPatch, *, wide: bool
) -> None:
    monkeypatch.setattr(gemm, "has_wide_amd_cores", lambda: wide)
    monkeypatch.setattr(gemm, "_LEAST", 1)
    model = lf.models.lenet300((1, 8, 8), 10)
    found = [take_steps(trainer(model, few_digits, name), lf.init(model), seed=0, until=30)[0] for name in DENSE]
    same_numbers(*found)


@needs_compiler
@pytest.mark.slow
@pytest.mark.long
def test_wide_convolutions_step_as_the_eager_ones(few_digits: Dataset) -> None:
    """64 filters: a gradient by columns, and pooling in one walk with what its gradient needs."""
    model = lf.models.build("lenet5-wide", (1, 8, 8), 10)
    start = lf.prune(fraction=0.5)(lf.init(model))
    found = [take_steps(trainer(model, few_digits, name, lf.sgd(1e-2)), start, seed=0, until=10)[0] for name in DENSE]
    same_numbers(*found)


class BranchingNet(nn.Module):
    """Control flow that depends on data: nothing that is traced whole can hold it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x.flatten(1))
        return -out if out.sum() > 0 else out


@needs_compiler
def test_a_network_that_cannot_be_traced_is_told_with_its_line(few_digits: Dataset) -> None:
    model = lf.from_module(BranchingNet(), name="branching")
    line = 1 + next(i for i, text in enumerate(Path(__file__).read_text().splitlines()) if "-out if" in text)
    with pytest.raises(UserError, match=r"^engine: branching cannot be compiled") as caught:
        take_steps(trainer(model, few_digits, "compile"), lf.init(model), seed=0, until=2)
    assert f"line {line} of {__file__}: return -out if out.sum() > 0 else out" in str(caught.value)
    assert "the engine eager runs it" in str(caught.value)
    assert "\n" not in str(caught.value)
