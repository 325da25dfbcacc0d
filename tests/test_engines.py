"""Engines: all equal the eager step, change nobody's tensors, and compile once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from conftest import DroppingNet, NormedNet
from network_engines import interpreted
from torch import nn

import lthfunc as lf
from lthfunc.catalog.training import ENGINES
from lthfunc.errors import UserError
from lthfunc.experiments.settings.running import PRECISIONS as PRECISION_NAMES
from lthfunc.training.engines import toolchain
from lthfunc.training.engines.table import COMPILE_FROM_STEPS, engine_for
from lthfunc.training.loop import fit, fit_together, take_steps
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import PRECISIONS, check_precision
from lthfunc.training.trainer import Trainer, make_trainer, measure
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset, Scale, TrainState

needs_compiler = pytest.mark.skipif(toolchain.why_not("cpu") is not None, reason=f"{toolchain.why_not('cpu')}")
#: The engines that `make_trainer` takes by another thing than their name.
MAKERS = {
    "sparse": lf.sparse_engine, "sparse/compile": lf.sparse_or("compile"), "compile, interpreted": interpreted,
}  # fmt: skip
EVERY = [
    pytest.param(name, marks=() if name == "eager" else (needs_compiler, pytest.mark.slow))
    for name in ENGINES
    if "/" not in name
]
OTHERS = [param for param in EVERY if param.values != ("eager",)]
#: The compiled engine without Inductor, which takes ten seconds for a program: all of it that is this library's.
INTERPRETED = pytest.param("compile, interpreted", marks=needs_compiler)
#: Where a program of Inductor's is only one more of its kind.
EVERY_QUICK = [
    pytest.param(*param.values, marks=(*param.marks, pytest.mark.long) if param.values == ("compile",) else param.marks)
    for param in EVERY
]

#: Stated tolerance: a compiler contracts multiplications and additions, and convolutions sum in another order, so
#: results differ in the last bits, and training carries such differences on. After 30 steps they stay below this.
RELATIVE, ABSOLUTE = 1e-3, 1e-4

OPTIMIZERS = {
    "adam": lf.adam(lf.warmup(lf.cosine(1e-3, 40), 5), weight_decay=1e-2),
    "adamw": lf.adamw(1e-3),
    "momentum": lf.sgd(lf.stepwise(1e-2, (10, 20)), momentum=0.9, nesterov=True, weight_decay=5e-4),
    "sgd": lf.sgd(1e-2),
}


def trainer(
    model: lf.Model, data: Dataset, engine: str, optimizer: Optimizer | None = None, batch_size: int = 40
) -> Trainer:
    return make_trainer(
        model, data, optimizer=optimizer or lf.adam(1e-3), batch_size=batch_size, engine=MAKERS.get(engine, engine)
    )


def same_numbers(left: TrainState, right: TrainState) -> None:
    """Params, buffers and optimiser state, within the stated tolerance."""
    for name in ("params", "buffers", "opt"):
        pair = [ops.leaves(getattr(state, name)) for state in (left, right)]
        for a, b in zip(*pair, strict=True):
            torch.testing.assert_close(a, b, rtol=RELATIVE, atol=ABSOLUTE)
    assert lf.same_bits(left.masks, right.masks)
    assert int(left.step) == int(right.step)


#: Compiling takes most of the time, so one of these has to do; test_chain_engines.py has adamw, other tests sgd.
CASES = [
    pytest.param(*name.values, optimizer, marks=name.marks)
    for name in OTHERS for optimizer in OPTIMIZERS if name.values != ("compile",) or optimizer == "adam"
]  # fmt: skip


@pytest.mark.parametrize(("name", "optimizer"), CASES)
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


@pytest.mark.parametrize("name", [*EVERY_QUICK, INTERPRETED])
def test_states_side_by_side_equal_each_alone(few_digits: Dataset, name: str) -> None:
    """One vmapped program over a ticket, its dense network and another seed, each with its own batches."""
    if "compile" in name and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):
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
    with pytest.raises(UserError, match=r"^engine: compile trains networks side by side on a CPU with torch 2\.14 or"):
        fit_together(work, [lf.init(model, seed) for seed in (0, 1)], seeds=[0, 1], until=2, eval_every=2)


@pytest.mark.parametrize("name", EVERY_QUICK)
def test_random_layers_repeat(few_digits: Dataset, name: str) -> None:
    model = lf.from_module(DroppingNet())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    work = trainer(model, few_digits, name)
    first, _ = take_steps(work, lf.init(model), seed=0, until=10)
    assert torch.equal(torch.rand(3), expected), "the global generator is left alone"
    assert lf.same_bits(first, take_steps(work, lf.init(model), seed=0, until=10)[0])


@pytest.mark.parametrize("name", EVERY_QUICK[1:])
def test_augmentation_draws_the_same_in_every_engine(few_digits: Dataset, name: str) -> None:
    model = lf.from_module(NormedNet())
    results = [
        take_steps(
            make_trainer(
                model,
                few_digits,
                optimizer=lf.sgd(0.01),
                batch_size=40,
                augment=lf.augmentations(lf.shift_and_mirror, lf.mixup(10)),
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


@pytest.mark.parametrize("name", EVERY_QUICK)
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
        found = measure(work, [state] * networks, data.test)
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
    with pytest.raises(UserError, match=r"^precision: invalid value 'tf32' \(expected one of fp32, bf16 on cpu"):
        check_precision("tf32", "cpu")


def test_the_rule_and_the_names_are_one() -> None:
    assert PRECISIONS == PRECISION_NAMES
    assert engine_for(COMPILE_FROM_STEPS - 1) == "eager"
    assert engine_for(COMPILE_FROM_STEPS) == "compile"
    with pytest.raises(UserError, match=r"^engine: unknown name 'compiled'; did you mean 'compile'"):
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
