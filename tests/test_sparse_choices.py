"""The sparse engine as it is chosen, called, compiled and threaded."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import noted
from lthfunc_cli.main import main
from test_sparse_engine import (
    small_images,  # noqa: F401
    ticket_of,
    trained,
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.hardware import has_bf16_products
from lthfunc.sparse import cost_model
from lthfunc.sparse.cost_model import is_faster, why_not_sparse
from lthfunc.sparse.functional import conv_pattern, from_tiles, linear_pattern, sparse_conv2d, to_tiles
from lthfunc.sparse.kernels import build
from lthfunc.sparse.thread_tuner import ThreadTuner
from lthfunc.training.engines.interface import Work
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer
from lthfunc.trees.types import Dataset

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.mark.parametrize("wide", [False, True])
def test_the_rule_knows_shapes_densities_and_the_processor_alone(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """wide: a processor on which it computes convolutions of most weights densely, as fast as the dense engine."""
    for fact in ("has_wide_amd_cores", "have_avx512"):
        monkeypatch.setattr(cost_model, fact, lambda: wide)
    for arch, shape, expected in (
        ("lenet300", (1, 28, 28), {1.0: True, 0.2: True}),
        ("lenet5", (1, 28, 28), {1.0: True, 0.2: True}),
        ("conv4", (3, 32, 32), {1.0: wide, 0.8: wide, 0.5: True, 0.1: True}),
        ("conv6", (3, 32, 32), {1.0: False, 0.8: False, 0.5: True, 0.1: True}),
        ("resnet20", (3, 32, 32), {1.0: wide, 0.8: wide, 0.5: True, 0.1: True}),
    ):
        model = getattr(lf.models, arch)(shape, 10)
        for density, faster in expected.items():
            assert is_faster(model, shape, ticket_of(model, density).masks) is faster, (arch, density)


def test_auto_takes_it_for_long_runs_on_a_cpu() -> None:
    assert prepare(resolved(Config(arch="lenet300", steps=3000))).config.engine == "sparse/compile"
    engine = "compile" if has_bf16_products() else "sparse/compile"
    assert prepare(resolved(Config(arch="lenet300", steps=3000, precision="bf16"))).config.engine == engine
    assert prepare(resolved(Config(arch="lenet300", steps=10, rounds=1))).config.engine == "eager"


def test_threads_are_no_more_than_the_cores_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    for cores, threads in ((1, 1), (4, 4), (16, 8)):
        monkeypatch.setattr("lthfunc.experiments.engine_choice.usable_cores", lambda cores=cores: cores)
        assert prepare(resolved(Config(arch="lenet300", steps=3000))).config.threads == threads


class Odd(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(x.flatten(1).cumsum(1))
        return found


def test_what_cannot_be_sparse_is_named(few_digits: Dataset) -> None:
    model = lf.from_module(Odd((1, 8, 8), 10))
    work = Work(model, lf.cross_entropy, lf.adam(1e-3), None, None, "fp32")
    reason = why_not_sparse(work, (1, 8, 8), torch.float32)
    assert reason is not None
    assert "no rule for cumsum in Odd" in reason
    assert f"of {__file__}: found: Tensor = self.out(x.flatten(1).cumsum(1))" in reason
    with pytest.raises(UserError, match=r"^precision: invalid value 'tf32' \(expected fp32 or bf16 with the engine"):
        make_trainer(model, few_digits, optimizer=lf.adam(1e-3), engine=lf.sparse_engine, precision="tf32")
    with pytest.raises(UserError, match="no rule for cumsum"):
        prepare(resolved(Config(arch="test_sparse_choices:Odd", engine="sparse", steps=5)))
    assert prepare(resolved(Config(arch="test_sparse_choices:Odd", steps=3000))).config.engine == "compile"


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, few_digits: Dataset) -> None:
    monkeypatch.setattr(build, "why_no_compiler", lambda: "no C++ compiler was found (g++)")
    with pytest.raises(
        UserError, match=r"sparse cannot run on this machine, since no C\+\+ compiler was found \(g\+\+\)"
    ):
        prepare(resolved(Config(arch="lenet300", steps=10, engine="sparse")))


def test_the_command_line_runs_it_and_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    common = ["prune", "--rounds", "1", "--steps", "20", "--engine", "sparse"]
    assert main([*common, "--out", str(out)]) == 0
    assert 'engine = "sparse"' in (out / "config.toml").read_text()
    assert (out / "training_time.png").exists()
    capsys.readouterr()
    for options, words in (
        (
            ["--precision", "tf32"],
            "--precision: invalid value 'tf32' (expected one of fp32, bf16 on cpu",
        ),
        (
            ["--arch", "test_sparse_choices:Odd"],
            "--engine: sparse has no rule for cumsum in test_sparse_choices:Odd (line",
        ),
    ):
        assert main([*common, *options, "--out", str(tmp_path / "refused")]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "refused").exists()


def test_a_ticket_is_a_callable(digits: Dataset) -> None:
    from lthfunc.trees.model import apply_evaluating

    model = lf.models.lenet300((1, 8, 8), 10)
    state = trained(model, digits, ticket_of(model, 0.2), lf.sparse_engine, 30)
    run = lf.sparse_program(model, state)
    for n in (1, 16, 17, 600):
        x = digits.train.x[:n]
        torch.testing.assert_close(
            run(x), apply_evaluating(model, state.params, state.buffers, x), rtol=1e-4, atol=1e-5
        )
    kept = run(digits.train.x[:5])
    run(digits.train.x[5:10])
    assert not torch.equal(kept, run(digits.train.x[5:10])), "outputs are nobody else's memory"


def test_build_kernels_says_where(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lthfunc_cli", "build-kernels"], capture_output=True, text=True, check=False,
        env=os.environ | {"COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(build.cache_folder()) in done.stdout


@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
def test_layers_as_functions_under_torch_func(stride: tuple[int, int]) -> None:
    build.load_kernels()
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(6, 3, 3, 3, generator=generator) < 0.4
    weight, bias = torch.randn(6, 3, 3, 3, generator=generator) * mask, torch.randn(6, generator=generator)
    x = torch.randn(19, 3, 9, 11, generator=generator)
    pattern = conv_pattern(mask, (9, 11), stride, (1, 1))

    def ours(values: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return from_tiles(sparse_conv2d(to_tiles(x), values, bias, pattern), 19).pow(2).sum()

    def theirs(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, stride, 1).pow(2).sum()

    found = torch.func.grad(ours, (0, 1, 2))(weight[mask], bias, x)
    expected = torch.func.grad(theirs, (0, 1, 2))(weight, bias, x)
    torch.testing.assert_close(found, (expected[0][mask], expected[1], expected[2]), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_one_compilation_serves_all_masks() -> None:
    generator = torch.Generator().manual_seed(0)
    x, bias = torch.randn(70, 50, generator=generator), torch.zeros(30)
    fixed = linear_pattern(torch.ones(30, 50, dtype=torch.bool))

    def step(values: Tensor, *lists: Tensor) -> Any:
        pattern = fixed._replace(
            starts=lists[0], offsets=lists[1], starts_back=lists[2], offsets_back=lists[3], which=lists[4]
        )

        def loss(values: Tensor) -> Tensor:
            return from_tiles(sparse_conv2d(to_tiles(x), values, bias, pattern), 70).pow(2).mean()

        return torch.func.grad(loss)(values)

    graphs: list[object] = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return torch._inductor.compile(graph, example)

    fast = torch.compile(step, fullgraph=True, backend="inductor")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for density in (0.5, 0.3, 0.1):
        mask = torch.rand(30, 50, generator=generator) < density
        pattern, values = linear_pattern(mask), torch.randn(int(mask.sum()), generator=generator)
        lists = [pattern.starts, pattern.offsets, pattern.starts_back, pattern.offsets_back, pattern.which]
        for item in (values, lists[1], lists[3], lists[4]):
            torch._dynamo.mark_dynamic(item, 0)
        weight = torch.zeros(30, 50)
        weight[mask] = values
        expected = torch.func.grad(lambda w: F.linear(x, w, bias).pow(2).mean())(weight)[mask]
        torch.testing.assert_close(fast(values, *lists), expected, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_operations_are_as_pytorch_wants_them() -> None:
    pattern = linear_pattern(torch.rand(30, 50, generator=torch.Generator().manual_seed(0)) < 0.3)
    tiles, values = to_tiles(torch.randn(70, 50)), torch.randn(len(pattern.offsets))
    ops = torch.ops.lthfunc
    torch.library.opcheck(
        ops.products.default, (tiles, values, None, pattern.starts, pattern.offsets, None, 30, 1, 1, 1, 1)
    )
    torch.library.opcheck(
        ops.weight_gradients.default, (tiles, torch.randn(5, 30, 1, 1, 16), pattern.starts, pattern.offsets, 1, 1)
    )


class _Machine:
    """Seconds of a step on all threads and on one, the share of their cores that threads get, and a clock."""

    def __init__(self) -> None:
        self.now, self.share, self.seconds = 0.0, 1.0, {4: 0.001, 1: 0.003}

    def steps(self, pace: ThreadTuner, count: int) -> list[int]:
        """The threads of so many steps, taken one by one."""
        seen = []
        for _ in range(count):
            seen.append(pace.threads)
            taken = self.seconds[pace.threads]
            self.now += taken
            pace.took(1, taken, self.share * taken * pace.threads)
        return seen


def test_threads_follow_what_is_faster() -> None:
    machine = _Machine()
    pace = ThreadTuner(4, lambda: machine.now)
    assert set(machine.steps(pace, 5000)) == {4}  # quiet: one thread is not even tried
    machine.seconds, machine.share = {4: 0.02, 1: 0.005}, 0.6  # others came
    machine.steps(pace, 200)
    assert pace.threads == 1
    machine.seconds, machine.share = {4: 0.001, 1: 0.003}, 1.0  # and left
    machine.steps(pace, 3000)
    assert pace.threads == 4
    machine.seconds, machine.share = {4: 0.001, 1: 0.002}, 0.7  # threads that sleep by nature
    assert machine.steps(pace, 60_000).count(1) < 300  # are tried ever more rarely
    machine.seconds, machine.share = {4: 0.1, 1: 0.001}, 0.25  # a single core
    machine.steps(pace, 2000)
    assert pace.at_most(1000) == 1000
    while pace.threads == 1:
        machine.steps(pace, 1)
    assert pace.at_most(1000) == 1  # a trial does not take long
    before = machine.now
    assert machine.steps(pace, 100_000).count(4) * 0.1 < 0.05 * (machine.now - before)
    assert ThreadTuner(1).threads == 1
    assert ThreadTuner(1).processor_time() == 0 < ThreadTuner(2).processor_time()


def test_a_loop_that_changes_its_threads_has_the_same_bits(images: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lf.models.conv2((3, 16, 16), 10)
    start = ticket_of(model, 0.3)
    before, seen = torch.get_num_threads(), list[int]()
    try:
        torch.set_num_threads(3)
        whole = trained(model, images, start, lf.sparse_engine, 12)
        turns = itertools.cycle([3, 1, 1, 3])
        monkeypatch.setattr(ThreadTuner, "threads", property(lambda self: noted(seen, next(turns))))
        monkeypatch.setattr("lthfunc.sparse.loops._CALL_SECONDS", 0.0)  # a step a call
        changing = trained(model, images, start, lf.sparse_engine, 12)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert {1, 3} <= set(seen)
    assert lf.same_bits(whole, changing)


def test_steps_of_the_machine_alone_leave_torchs_generator_alone(few_digits: Dataset) -> None:
    """Other trainings run in threads beside them; a loss of the user's own may draw, and finds it seeded."""
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Dropout(0.5), nn.Linear(32, 10)))
    before = torch.get_rng_state()

    def untouched(loss: lf.Loss) -> set[bool]:
        seen = []
        trainer = make_trainer(
            model, few_digits, optimizer=lf.adam(1e-3), batch_size=40, engine=lf.sparse_engine, loss=loss
        )
        observe = lambda *_: seen.append(torch.equal(torch.get_rng_state(), before))  # noqa: E731
        take_steps(trainer, lf.init(model), seed=0, until=10, observe=observe)
        return set(seen)

    assert untouched(lf.cross_entropy) == {True}
    assert untouched(lambda outputs, y: F.cross_entropy(outputs, y)) == {False}
    assert torch.equal(torch.get_rng_state(), before)
