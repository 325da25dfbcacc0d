"""Engines: all equal the eager step, change nobody's tensors, and compile once."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DroppingNet, NormedNet, noted
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import lthfunc as lf
from lthfunc import hardware
from lthfunc.catalog.pruning import CONTROLS
from lthfunc.catalog.training import ENGINES
from lthfunc.errors import UserError
from lthfunc.experiments.iterative import Plan, iterative
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.settings.running import PRECISIONS as PRECISION_NAMES
from lthfunc.training.engines import compiled as compiled_engine, gemm, toolchain
from lthfunc.training.engines.im2col import convolution_backward
from lthfunc.training.engines.pooling import max_pool, max_pool_backward
from lthfunc.training.engines.table import COMPILE_FROM_STEPS, engine_for
from lthfunc.training.engines.tracing import compiled
from lthfunc.training.loop import fit, fit_together, take_steps
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import PRECISIONS, check_precision
from lthfunc.training.trainer import Trainer, make_trainer, measure
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset, Scale, TrainState

needs_compiler = pytest.mark.skipif(toolchain.why_not("cpu") is not None, reason=f"{toolchain.why_not('cpu')}")
#: The engines that `make_trainer` takes by another thing than their name.
MAKERS = {"sparse": lf.sparse_engine, "sparse/compile": lf.sparse_or("compile")}
DENSE = [name for name in ENGINES if not name.startswith("sparse")]
EVERY = [
    pytest.param(name, marks=() if name == "eager" else (needs_compiler, pytest.mark.slow))
    for name in ENGINES
    if "/" not in name
]
OTHERS = [param for param in EVERY if param.values != ("eager",)]

#: Stated tolerance: a compiler contracts multiplications and additions, and convolutions sum in another order, so
#: results differ in the last bits, and training carries such differences on. After 30 steps they stay below this.
RELATIVE, ABSOLUTE = 1e-3, 1e-4

OPTIMIZERS = {
    "adam": lf.adam(lf.warmup(lf.cosine(1e-3, 40), 5), weight_decay=1e-2),
    "adamw": lf.adamw(1e-3),
    "momentum": lf.sgd(lf.stepwise(1e-2, (10, 20)), momentum=0.9, nesterov=True, weight_decay=5e-4),
    "sgd": lf.sgd(1e-2),
}


def trainer(model: lf.Model, data: Dataset, engine: str, optimizer: Optimizer | None = None) -> Trainer:
    return make_trainer(
        model, data, optimizer=optimizer or lf.adam(1e-3), batch_size=40, engine=MAKERS.get(engine, engine)
    )


def same_numbers(left: TrainState, right: TrainState) -> None:
    """Params, buffers and optimiser state, within the stated tolerance."""
    for name in ("params", "buffers", "opt"):
        pair = [ops.leaves(getattr(state, name)) for state in (left, right)]
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a, b, rtol=RELATIVE, atol=ABSOLUTE)
    assert lf.same_bits(left.masks, right.masks)
    assert int(left.step) == int(right.step)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_engines_equal_the_eager_step(few_digits: Dataset, name: str, optimizer: str) -> None:
    """Convolution, BatchNorm and a linear layer; schedules, weight decay, momentum; losses and evaluations too."""
    model = lf.from_module(NormedNet())
    start = lf.prune(fraction=0.5)(lf.init(model))
    before = ops.clone(start)
    fits = {}
    for engine in ("eager", name):
        work = trainer(model, few_digits, engine, OPTIMIZERS[optimizer])
        fits[engine] = fit(work, start, seed=0, until=30, eval_every=10)
        again = fit(work, start, seed=0, until=30, eval_every=10)
        assert lf.same_bits(again.state, fits[engine].state), "an engine repeats its own bits"
    assert lf.same_bits(start, before), "an engine is pure"
    ours, reference = fits[name], fits["eager"]
    same_numbers(ours.state, reference.state)
    for point, expected in zip(ours.curve, reference.curve, strict=True):
        assert point == pytest.approx(expected, rel=1e-3, abs=1e-3, nan_ok=True)
    for key, mask in ours.state.masks.items():
        assert mask.dtype == torch.bool
        assert not ours.state.params[key][~mask].any()
        assert ours.state.params[key].is_contiguous()


@pytest.mark.parametrize("name", EVERY)
def test_training_in_parts_has_the_bits_of_training_in_one(few_digits: Dataset, name: str) -> None:
    model = lf.from_module(NormedNet())
    work = trainer(model, few_digits, name)
    whole, _ = take_steps(work, lf.init(model), seed=3, until=17)
    part, _ = take_steps(work, lf.init(model), seed=3, until=9)
    kept = ops.clone(part)
    rest, _ = take_steps(work, part, seed=3, until=17)
    assert lf.same_bits(rest, whole)
    assert lf.same_bits(part, kept), "a state handed out is nobody else's memory"


@pytest.mark.parametrize("name", EVERY)
def test_states_side_by_side_equal_each_alone(few_digits: Dataset, name: str) -> None:
    """One vmapped program over a ticket, its dense network and another seed, each with its own batches."""
    if name == "compile" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
        pytest.skip(f"torch {torch.__version__} compiles several networks in one program wrongly, and is refused")
    model = lf.from_module(NormedNet())
    states = [lf.init(model, 0), lf.prune(fraction=0.5)(lf.init(model, 0)), lf.init(model, 1)]
    seeds = [0, 0, 1]
    # Not Adam, whose first steps make full strides of gradients that are all rounding.
    work = trainer(model, few_digits, name, lf.sgd(1e-2, momentum=0.9))
    together = fit_together(work, states, seeds=seeds, until=20, eval_every=10)
    for state, seed, found in zip(states, seeds, together, strict=True):
        alone = fit(work, state, seed=seed, until=20, eval_every=10)
        same_numbers(found.state, alone.state)
        for point, expected in zip(found.curve, alone.curve, strict=True):
            assert point == pytest.approx(expected, rel=1e-3, abs=1e-3, nan_ok=True)


def test_side_by_side_is_not_compiled_where_gradients_would_be_wrong(
    few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Inductor 2.11, for a CPU: seen by the test above."""
    model = lf.from_module(NormedNet())
    work = trainer(model, few_digits, "compile", lf.sgd(1e-2))
    monkeypatch.setattr(torch, "__version__", "2.11.0+cpu")
    with pytest.raises(
        UserError, match=r"^--engine: compile trains networks side by side on a CPU with torch 2\.14 or"
    ):
        fit_together(work, [lf.init(model, seed) for seed in (0, 1)], seeds=[0, 1], until=2, eval_every=2)


@pytest.mark.parametrize("name", EVERY)
def test_random_layers_repeat(few_digits: Dataset, name: str) -> None:
    model = lf.from_module(DroppingNet())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    work = trainer(model, few_digits, name)
    first, _ = take_steps(work, lf.init(model), seed=0, until=10)
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
    assert lf.same_bits(first, take_steps(work, lf.init(model), seed=0, until=10)[0])


@pytest.mark.parametrize("name", OTHERS)
def test_augmentation_draws_the_same_in_every_engine(few_digits: Dataset, name: str) -> None:
    model = lf.from_module(NormedNet())
    results = [
        take_steps(
            make_trainer(
                model,
                few_digits,
                optimizer=lf.sgd(0.01),
                batch_size=40,
                augment=lf.shift_and_mirror,
                engine=MAKERS.get(engine, engine),
            ),
            lf.init(model),
            seed=4,
            until=12,
        )[0]
        for engine in ("eager", name)
    ]
    same_numbers(*results)
    plain, _ = take_steps(trainer(model, few_digits, "eager", lf.sgd(0.01)), lf.init(model), seed=4, until=12)
    assert not lf.same_bits(plain.params, results[0].params)


@pytest.mark.parametrize("name", EVERY)
def test_stored_pixels_are_scaled_inside_the_step(few_digits: Dataset, name: str) -> None:
    """uint8 inputs with a scale train as the floats do that the scale makes of them."""
    scale = Scale(16.0, (0.3,), (0.4,))
    raw = {}
    floats = {}
    for part in ("train", "val", "test"):
        split = getattr(few_digits, part)
        pixels = (split.x - split.x.min()).mul(6).round().clamp(0, 16).to(torch.uint8)
        raw[part] = split._replace(x=pixels)
        floats[part] = split._replace(x=(pixels.float() / 16 - 0.3) / 0.4)
    model = lf.from_module(NormedNet())
    stored = few_digits._replace(**raw, scale=scale)
    fits = [
        fit(trainer(model, data, engine), lf.init(model), seed=0, until=12, eval_every=6)
        for data, engine in ((stored, name), (few_digits._replace(**floats), "eager"))
    ]
    same_numbers(fits[0].state, fits[1].state)
    assert fits[0].best.point == pytest.approx(fits[1].best.point, rel=1e-3)
    assert lf.accuracy_on(model, fits[0].state, stored) == pytest.approx(
        lf.accuracy_on(model, fits[1].state, few_digits._replace(**floats)), abs=0.02
    )


@needs_compiler
@pytest.mark.slow
def test_a_whole_run_compiles_one_step_and_one_evaluation(
    digits: Dataset, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds, seeds, controls, masks and rewinding change nothing: they are data."""
    made: list[str] = []
    monkeypatch.setattr(compiled_engine, "compiled", lambda *a: (noted(made, a[0].__name__), compiled(*a))[1])
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
@pytest.mark.slow
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
@pytest.mark.slow
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
@pytest.mark.parametrize("wide", [False, True])
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
    with pytest.raises(UserError, match="--engine: branching cannot be compiled") as caught:
        take_steps(trainer(model, few_digits, "compile"), lf.init(model), seed=0, until=2)
    assert f"line {line} of {__file__}: return -out if out.sum() > 0 else out" in str(caught.value)
    assert "--engine eager runs it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_measuring_counts_every_example_once(few_digits: Dataset) -> None:
    """2,300 examples in chunks: the mean over all, not the mean of the chunks' means."""
    inputs, targets = torch.eye(10).repeat(230, 1), torch.arange(10).repeat(230)
    targets[2000:] = (targets[2000:] + 1) % 10
    module = nn.Linear(10, 10, bias=False)
    nn.init.eye_(module.weight)
    model = lf.from_module(module, init=lf.as_built)
    state = lf.init(model)
    data = lf.data.from_tensors("eye", (inputs, targets), (inputs, targets), val=100)
    for networks in (1, 3):
        work = make_trainer(model, data, optimizer=lf.sgd(0.1))
        found = measure(work, [state.params] * networks, [{}] * networks, data.test, torch.device("cpu"))
        assert len(found) == networks
        for quality in found:
            assert quality.accuracy == pytest.approx(2000 / 2300, rel=1e-15)
            assert quality.loss == pytest.approx(nn.functional.cross_entropy(module(inputs), targets).item(), rel=1e-5)


def test_bf16_runs_the_network_in_bfloat16_and_nothing_else(few_digits: Dataset) -> None:
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(x.flatten(1))
            seen.append(out.dtype)
            return out

    model = lf.from_module(Spy())
    states = {}
    for precision in ("fp32", "bf16"):
        work = make_trainer(model, few_digits, optimizer=lf.sgd(0.05), batch_size=40, precision=precision)
        states[precision], _ = take_steps(work, lf.init(model), seed=0, until=20)
    assert set(seen) == {torch.float32, torch.bfloat16}
    assert {leaf.dtype for leaf in states["bf16"].params.values()} == {torch.float32}
    for name, value in states["fp32"].params.items():
        torch.testing.assert_close(states["bf16"].params[name], value, rtol=0.1, atol=5e-3)
    assert not lf.same_bits(states["fp32"].params, states["bf16"].params)
    with pytest.raises(UserError, match=r"--precision: invalid value 'tf32' \(expected one of fp32, bf16 on cpu"):
        check_precision("tf32", "cpu")


def test_the_rule_and_the_names_are_one() -> None:
    assert PRECISIONS == PRECISION_NAMES
    assert engine_for(COMPILE_FROM_STEPS - 1) == "eager"
    assert engine_for(COMPILE_FROM_STEPS) == "compile"
    with pytest.raises(UserError, match="--engine: unknown name 'compiled'; did you mean 'compile'"):
        make_trainer(lf.models.lenet300(), lf.data.load("digits"), optimizer=lf.sgd(0.1), engine="compiled")


def test_a_missing_compiler_is_said_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    toolchain._why_no_host_compiler.cache_clear()
    try:
        monkeypatch.setenv("CXX", "no-such-compiler")
        assert toolchain.why_not("cpu") == "no C++ compiler was found (no-such-compiler)"
        toolchain._why_no_host_compiler.cache_clear()
        monkeypatch.delenv("CXX")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert toolchain.why_not("cpu") == "no C++ compiler was found (g++)"
    finally:
        toolchain._why_no_host_compiler.cache_clear()


def test_losses_are_means_over_the_steps_since_the_last_time(few_digits: Dataset) -> None:
    """Against the eager step's own metrics, one by one."""
    from lthfunc.training.batches import batches

    model = lf.from_module(NormedNet())
    optimizer = lf.adam(1e-3)
    state, step = lf.with_optimizer(lf.init(model), optimizer), lf.make_train_step(model, lf.cross_entropy, optimizer)
    losses = []
    for batch in batches(few_digits.train, 40, 7, 0, 9):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    found = fit(trainer(model, few_digits, "eager"), lf.init(model), seed=7, until=9, eval_every=4)
    assert math.isnan(found.curve[0].train_loss)
    expected = [sum(losses[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 9))]
    assert [point.train_loss for point in found.curve[1:]] == pytest.approx(expected, rel=1e-6)
    assert lf.same_bits(found.state.params, state.params)
