"""What engines are made of, part by part: launching, several states as one, compilers, threads, memory, ranks."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import noted
from small import NET, data, state_of
from threads_as_ranks import Ranks
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import averaged_gradients, differentiable_sum, rank_batch_size, surviving_indices
from lthfunc.errors import UserError
from lthfunc.training import cpu_threads, malloc, precision
from lthfunc.training.engines import compiled as compiled_engine, reused_memory, toolchain
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.eager import eager
from lthfunc.training.engines.interface import Work
from lthfunc.training.engines.reused_memory import GraphPools
from lthfunc.training.engines.table import engine_for, make_engine
from lthfunc.training.engines.vmapped import (
    carry_of,
    losses_of,
    stacked,
    states_of,
    unstacked,
    vmapped,
    vmapped_eval,
    with_losses,
)
from lthfunc.training.evaluation import chunk_for, evaluate
from lthfunc.training.losses import cross_entropy
from lthfunc.training.prefetch import Prefetcher
from lthfunc.trees.ops import clone
from lthfunc.trees.rng import counter_key
from lthfunc.trees.side_effects import SideEffects
from lthfunc.trees.types import Scale, Split, TrainState

NHWC = torch.channels_last


# ---- launching ----


def _launcher() -> tuple[Launcher, list[float]]:
    seen: list[float] = []
    slots = [(torch.tensor(float(slot)), torch.tensor(10.0 * slot)) for slot in range(5)]
    return Launcher(lambda x, y: seen.append(float(x) + float(y)), slots), seen


def test_a_program_is_called_on_slot_after_slot() -> None:
    launcher, seen = _launcher()
    pools = GraphPools()
    assert Launcher(print, [(torch.zeros(1),)], pools)._pools is pools
    assert isinstance(launcher._pools, GraphPools)
    assert launcher.launch(3, None) == 3
    assert seen == [0, 11, 22]
    ticks: list[int] = []
    assert launcher.launch(4, lambda steps: noted(ticks, steps) is None) == 4
    assert (seen[3:], ticks) == ([0, 11, 22, 33], [1, 1, 1, 1])
    assert launcher.launch(5, lambda steps: len(seen) == 9) == 2
    assert seen[7:] == [0, 11]


def test_a_captured_number_of_steps_is_replayed_from_the_second_time_on(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, seen = _launcher()
    replayed: list[int] = []

    def replay(steps: int) -> bool:
        replayed.append(steps)
        return steps != 2

    launcher._capture = True
    monkeypatch.setattr(launcher, "_replay", replay)
    ticks: list[int] = []

    def tick(steps: int) -> bool:
        ticks.append(steps)
        return False

    assert launcher.launch(3, tick) == 3
    assert (len(seen), ticks, replayed) == (3, [1, 1, 1], [])  # the first time warms up
    assert launcher.launch(3, tick) == launcher.launch(3, None) == 3
    assert (len(seen), ticks, replayed) == (3, [1, 1, 1, 3], [3, 3])
    assert launcher.launch(2, None) == launcher.launch(2, None) == 2  # what cannot be captured is launched one by one
    assert (len(seen), replayed) == (7, [3, 3, 2])
    launcher._capture = False
    launcher.launch(3, None)
    assert (len(seen), replayed) == (10, [3, 3, 2])


# ---- several states as one ----


def test_stacked_trees_come_apart_again() -> None:
    trees: list[Any] = [{"a": torch.randn(2, 3), "b": (torch.randn(4),)} for _ in range(3)]
    together = stacked(trees)
    assert together["a"].shape == (3, 2, 3)
    assert together["b"][0].shape == (3, 4)
    for mine, theirs in zip(unstacked(together, 3), trees, strict=True):
        assert lf.same_bits(mine, theirs)
    assert stacked(trees[:1]) is trees[0]
    (alone,) = unstacked(trees[0], 1)
    assert alone is trees[0]


def _states(count: int) -> tuple[list[TrainState], lf.Optimizer]:
    model, optimizer = lf.from_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))), lf.adam(0.1)
    found = [lf.prune(density=0.5)(lf.init(model, seed)) for seed in range(count)]
    return [lf.with_optimizer(state, optimizer) for state in found], optimizer


@pytest.mark.parametrize("count", [1, 3])
def test_a_carry_holds_states_keys_and_losses(count: int) -> None:
    states, _ = _states(count)
    carry = carry_of(states, range(7, 7 + count))
    assert losses_of(carry) == [0.0] * count
    assert carry.loss.dtype == torch.float64
    keys = carry.key.reshape(-1).tolist()
    assert keys == [int(counter_key(seed, "step")) for seed in range(7, 7 + count)]
    assert carry.travels == ()
    assert all(mask.dtype == torch.float32 for mask in carry.state.masks.values())
    changed = with_losses(carry, [float(number) for number in range(count)])
    assert changed.loss.shape == carry.loss.shape
    assert losses_of(changed) == [float(number) for number in range(count)]
    copies: list[Any] = []
    back = states_of(carry, count, lambda leaf: noted(copies, leaf).clone())
    assert copies
    for mine, theirs in zip(back, states, strict=True):
        assert lf.same_bits(mine, theirs)
        assert all(mask.dtype == torch.bool for mask in mine.masks.values())


def test_a_carry_of_a_rank_knows_what_travels() -> None:
    (state,), _ = _states(1)
    carry = carry_of([state], [0], Collectives(0, 2, lambda vector: vector))
    assert isinstance(carry.travels, torch.Tensor)
    assert torch.equal(carry.travels, surviving_indices(state))


def test_random_layers_draw_anew_for_each_state() -> None:
    def drawing(carry: Any, batch: Any) -> Any:
        return torch.rand(())

    drawn: Any = vmapped(drawing, 3)(torch.zeros(3), torch.zeros(3))  # type: ignore[arg-type]
    assert len(set(drawn.tolist())) == 3
    assert vmapped(drawing, 1) is drawing


def test_an_evaluation_of_several_networks_is_that_of_each() -> None:
    def step(params: Any, buffers: Any, batch: Any) -> Any:
        return {"loss": (batch[0] * params["w"] + buffers["b"]).sum() + batch[1].sum() + 0 * torch.rand(())}

    def writes(params: Any, buffers: Any, batch: Any) -> Any:
        inputs = batch[0].clone()
        inputs.mul_(params["w"]).add_(buffers["b"])  # which vmap takes of inputs that each network has for itself
        return {"loss": inputs.sum() + batch[1].sum()}

    params, buffers = {"w": torch.tensor([2.0, 3.0])}, {"b": torch.tensor([10.0, 20.0])}
    x, y = torch.tensor([1.0, 4.0]), torch.tensor([100.0])
    expected = [5 * 2 + 20 + 100, 5 * 3 + 40 + 100]
    assert vmapped_eval(step, 2)(params, buffers, (x, y))["loss"].tolist() == expected
    assert vmapped_eval(step, 1) is step
    found = vmapped_eval(writes, 2, own_inputs=True)(params, buffers, (x, y))
    assert found["loss"].tolist() == expected


# ---- the compiled engine, its compiler left away ----


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The shapes that each program is made for; a program is the function itself."""
    made: list[list[tuple[int, ...]]] = []

    def plain(function: Any, example: Any, name: str) -> Any:
        made.append([tuple(leaf.shape) for leaf in example])
        return function

    monkeypatch.setattr(compiled_engine, "compiled", plain)
    monkeypatch.setattr(compiled_engine, "_check_torch", lambda device: None)  # nothing is compiled
    return made


def _work(collectives: Collectives = SINGLE_RANK) -> Work:
    return Work(lf.from_module(NET), cross_entropy, lf.sgd(0.1, 0.5), None, None, "fp32", collectives=collectives)


@pytest.mark.parametrize("width", [1, 2])
def test_programs_run_in_their_own_memory_to_the_eager_steps_bits(programs: Any, width: int) -> None:
    work, numbers = _work(), data()
    states = [lf.with_optimizer(state_of(seed)[1], work.optimizer) for seed in range(width)]
    before = [clone(state) for state in states]
    found = []
    for make in (compiled_engine.compile_engine, eager):
        engine = make(work)
        for _ in range(2):  # the second time nothing is made
            prefetcher = Prefetcher(numbers.train, 4, range(width), torch.device("cpu"))
            running = engine.begin(states, list(range(width)), prefetcher)
            assert running.draws
            prefetcher.fill(0, 3, 6)
            assert running.take(3, None) == 3
            prefetcher.fill(3, 6, 6)
            assert running.take(3, lambda steps: True) == 1
            losses, after = running.losses(), running.states()
            running.count_from([10.0] * width)
            assert running.losses() == [10.0] * width
            prefetcher.fill(4, 5, 6)
            running.take(1, None)
            assert [int(state.step) for state in after] == [4] * width  # nobody else's
        split = Split(numbers.train.x.repeat(20, 1), numbers.train.y.repeat(20))  # 600: the last 100 apart
        params, buffers = [state.params for state in after], [state.buffers for state in after]
        found.append((losses, after, engine.measure(params, buffers, split, torch.device("cpu"))))
    assert len(programs) == 2
    assert programs[0][-2:] == [(4, 6), (4,)] if width == 1 else [(2, 4, 6), (2, 4)]
    assert programs[1][-2:] == [(500 // width, 6), (500 // width,)]
    assert found[0][0] == pytest.approx(found[1][0])
    for mine, theirs in zip(found[0][1], found[1][1], strict=True):
        assert lf.same_bits(mine, theirs)
    for quality, expected in zip(found[0][2], found[1][2], strict=True):
        assert quality == pytest.approx(expected)
    assert lf.same_bits(states, before)


def test_images_lie_channels_last_in_a_loop_and_as_init_has_them_outside(programs: Any) -> None:
    net = nn.Sequential(nn.Unflatten(1, (2, 1, 3)), nn.Conv2d(2, 4, (1, 2)), nn.Flatten(), nn.Linear(8, 3))
    model, numbers = lf.from_module(net), data()
    work = _work()._replace(model=model)
    state = lf.with_optimizer(lf.init(model), work.optimizer)
    running: Any = compiled_engine.compile_engine(work).begin(
        [state], [0], Prefetcher(numbers.train, 4, [0], torch.device("cpu"))
    )
    assert any(leaf.ndim == 4 and not leaf.is_contiguous() for leaf in running._leaves)
    (found,) = running.states()
    for tree in (found.params, found.masks, found.opt.velocity):
        assert all(leaf.is_contiguous() for leaf in tree.values())


@pytest.mark.parametrize("width", [1, 2])
def test_types_are_looked_at_before_a_trace_that_hides_them(
    programs: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    look = compiled_engine._check_types

    def looked(work: Work, params: Any, buffers: Any, shape: Any, dtype: Any) -> None:
        seen.append((tuple(shape), dtype))
        look(work, params, buffers, shape, dtype)

    monkeypatch.setattr(compiled_engine, "_check_types", looked)
    work, numbers = _work(), data()
    engine = compiled_engine.compile_engine(work)
    states = [lf.with_optimizer(state_of(seed)[1], work.optimizer) for seed in range(width)]
    engine.begin(states, list(range(width)), Prefetcher(numbers.train, 4, range(width), torch.device("cpu")))
    params, buffers = [state.params for state in states], [state.buffers for state in states]
    engine.measure(params, buffers, numbers.val, torch.device("cpu"))
    assert seen == [((4, 6), torch.float32), ((2, 6), torch.float32)]

    def alone(dtype: torch.dtype, scale: Any = None) -> None:
        look(work._replace(scale=scale), states[0].params, {}, (2, 6), dtype)

    for fine in (torch.float32, torch.uint8, torch.int64):
        alone(fine)
    alone(torch.float64, Scale(1, (0.0,), (1.0,)))  # which makes float32 of it
    with pytest.raises(UserError):
        alone(torch.float64)


@pytest.mark.parametrize("graphs", [True, False])
def test_loops_share_pools_and_capture_where_they_may(
    programs: Any, graphs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def launcher(program: Any, slots: Any, pools: Any, *, capture: bool = True) -> Launcher:
        made.append((pools, capture, len(slots)))
        return Launcher(program, slots, pools, capture=capture)

    monkeypatch.setattr(compiled_engine, "Launcher", launcher)
    engine, numbers = compiled_engine.compile_engine(_work(), graphs=graphs), data()
    state = lf.with_optimizer(state_of()[1], lf.sgd(0.1, 0.5))
    for _ in range(2):
        prefetcher = Prefetcher(numbers.train, 4, [0], torch.device("cpu"))
        engine.begin([state], [0], prefetcher)
    (pools, *first), second = made
    assert first == [graphs, prefetcher.slots]
    assert second[0] is pools


def test_a_loop_goes_on_in_memory_that_was_left(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reusable(reused_memory.Reusable[Any]):
        """Of which the first is the loops'."""

        fit: Any = None

        def take(self, fit: Any) -> Any:
            self.fit = fit
            return super().take(fit)

    made: list[Reusable] = []
    monkeypatch.setattr(compiled_engine, "Reusable", lambda: noted(made, Reusable()))
    engine, numbers = compiled_engine.compile_engine(_work()), data()
    first, second = (lf.with_optimizer(state_of(seed)[1], lf.sgd(0.1, 0.5)) for seed in (3, 4))
    prefetcher = Prefetcher(numbers.train, 4, [3], torch.device("cpu"))
    running: Any = engine.begin([first], [3], prefetcher)
    prefetcher.fill(0, 2, 4)
    running.take(2, None)
    made[0].leave(made[0].fit, compiled_engine._Memory(running._leaves, prefetcher.slotted, running._launcher))
    found = []
    for kind in (engine, eager(_work())):
        prefetcher = Prefetcher(numbers.train, 4, [4], torch.device("cpu"))
        running = kind.begin([second], [4], prefetcher)
        prefetcher.fill(0, 3, 4)
        running.take(3, None)
        found.append(running.states()[0])
    assert len(programs) == 1
    assert lf.same_bits(*found)
    made[0].leave("other", "memory")
    engine.forget()
    assert made[0]._idle == made[1]._idle == []


def test_ranks_draw_outside_of_torch_by_their_number() -> None:
    state = lf.with_optimizer(state_of()[1], lf.sgd(0.1, 0.5))
    for rank, expected in ((0, []), (1, [1]), (2, [2])):
        collectives = Collectives(rank, 3, lambda vector: vector)
        prefetcher = Prefetcher(data().train, 6, [0], torch.device("cpu"), collectives=collectives)
        running: Any = eager(_work(collectives)).begin([state], [0], prefetcher)
        assert running._rank == expected


def test_one_program_serves_gradients_of_any_number_of_survivors(programs: Any) -> None:
    two = Collectives(0, 2, lambda vector: 2 * vector)
    engine = compiled_engine.compile_engine(_work(two))
    model, numbers = lf.from_module(NET), data()
    for density in (1.0, 0.6, 0.2):
        state = lf.with_optimizer(lf.prune(density=density)(lf.init(model)), lf.sgd(0.1, 0.5))
        engine.begin([state], [0], Prefetcher(numbers.train, 8, [0], torch.device("cpu"), collectives=two))
    assert len(programs) == 1
    engine.begin([state], [0], Prefetcher(numbers.train, 4, [0], torch.device("cpu"), collectives=two))
    assert len(programs) == 2
    alone = compiled_engine.compile_engine(_work())
    alone.begin([state], [0], Prefetcher(numbers.train, 8, [0], torch.device("cpu")))
    assert len(programs) == 3


# ---- engines by name, compilers, threads, memory, precisions ----


def test_auto_compiles_from_three_thousand_steps_on() -> None:
    assert (engine_for(2_999), engine_for(3_000), engine_for(3_001)) == ("eager", "compile", "compile")


def test_a_module_that_draws_elsewhere_runs_eagerly() -> None:
    work: Any = SimpleNamespace(
        side_effects=SideEffects(global_rngs=("numpy", "random")), model=SimpleNamespace(name="net")
    )
    for name in ("compile", "no-such", lambda work: "never"):
        with pytest.raises(
            UserError, match="--engine: net draws from numpy and random in forward, which only --engine e"
        ):
            make_engine(name, work)  # type: ignore[arg-type]
    assert make_engine("eager", work).name == "eager"
    tidy: Any = SimpleNamespace(side_effects=SideEffects(), model=None)
    own = make_engine("eager", tidy)
    assert make_engine(lambda work: own if work is tidy else None, tidy) is own  # type: ignore[arg-type, return-value]
    assert make_engine("compile", tidy).name == "compile"
    with pytest.raises(UserError, match="--engine: unknown name 'no-such'"):
        make_engine("no-such", tidy)


def test_the_first_compiler_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert toolchain.host_compiler() == ""
    for name in ("c++", "clang++", "g++"):
        (tmp_path / name).touch(mode=0o755)
        assert toolchain.host_compiler() == name
    monkeypatch.setenv("CXX", "mine")
    assert toolchain.host_compiler() == "mine"
    monkeypatch.setenv("CXX", "g++")
    for include, words in ((str(tmp_path), f"Python's header files are missing in {tmp_path}"), ("here", None)):
        toolchain._why_no_host_compiler.cache_clear()
        monkeypatch.setattr("sysconfig.get_paths", lambda include=include: {"include": include})
        monkeypatch.setattr("pathlib.Path.exists", lambda path: path == Path("here/Python.h"))
        assert toolchain.why_not("cpu") == words
    toolchain._why_no_host_compiler.cache_clear()


@pytest.mark.parametrize(("cores", "most"), [(None, 128), (1, 128), (32, 128), (33, 132), (100, 400)])
def test_four_threads_a_core_are_the_most(cores: int | None, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert cpu_threads.most_threads() == most
    for number in (None, 1, most):
        cpu_threads.check_threads(number)
        cpu_threads.check_jobs(number)
    with pytest.raises(
        UserError, match=rf"--jobs: invalid value {most + 1} \(expected a whole number from 1 to {most} "
    ):
        cpu_threads.check_jobs(most + 1)
    for number in (0, -1, most + 1):
        with pytest.raises(
            UserError, match=rf"--mine: invalid value {number} \(expected a whole number from 1 to {most} "
        ):
            cpu_threads.check_threads(number, "--mine")


def test_threads_are_as_before_after_an_error_too() -> None:
    before = torch.get_num_threads()
    with suppress(KeyError), cpu_threads.using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    assert torch.get_num_threads() == before
    with cpu_threads.using_threads(None):
        assert torch.get_num_threads() == before
    with pytest.raises(UserError, match="--threads: invalid value 0"), cpu_threads.using_threads(0):
        pass


def test_the_c_library_is_told_to_keep_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the numbers of glibc's malloc.h: M_TRIM_THRESHOLD -1, M_TOP_PAD -2, M_MMAP_MAX -4."""
    told: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        told[parameter] = value
        return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert malloc.keep_freed_memory() is True
    assert told == {-1: 2_147_483_647, -2: 67_108_864, -4: 0}
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *given: 0))
    assert malloc.keep_freed_memory() is False
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    assert malloc.keep_freed_memory() is False
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert malloc.keep_freed_memory() is False


def _products_now() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("name", "inside"), [("tf32", ("high", True)), ("fp32", ("highest", False)), ("bf16", ("highest", False))]
)
def test_a_gpus_products_are_as_before_afterwards(name: Any, inside: tuple[str, bool]) -> None:
    first = _products_now()
    try:
        for before in (("medium", True), ("highest", False)):
            torch.set_float32_matmul_precision(before[0])
            torch.backends.cudnn.allow_tf32 = before[1]
            with suppress(KeyError), precision.matmul_precision(name):
                assert _products_now() == inside
                raise KeyError
            assert _products_now() == before
    finally:
        torch.set_float32_matmul_precision(first[0])
        torch.backends.cudnn.allow_tf32 = first[1]


def test_only_bf16_casts() -> None:
    for name, kind in (("fp32", torch.float32), ("tf32", torch.float32), ("bf16", torch.bfloat16)):
        with precision.autocast_for(name, torch.device("cpu")):  # type: ignore[arg-type]
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == kind
    for name in ("fp32", "bf16"):
        precision.check_precision(name, "cpu")
    with pytest.raises(UserError, match=r"--precision: invalid value 'fp16' \(expected one of fp32, bf16 on cpu"):
        precision.check_precision("fp16", "cpu")


# ---- evaluation and ranks ----


def test_networks_share_a_chunk_but_not_too_small_ones() -> None:
    assert [chunk_for(count) for count in (1, 2, 4, 5, 6, 50)] == [500, 250, 125, 100, 100, 100]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_means_are_over_every_example_whatever_the_chunks_and_ranks(ranks: int) -> None:
    x, y = torch.randn(103, 2, dtype=torch.float64), torch.randn(103, dtype=torch.float64)
    split = Split(x.clone(), y.clone())

    def metrics(batch: Any) -> dict[str, Tensor]:
        inputs, targets = batch
        found = {"loss": torch.stack([inputs.mean(), 2 * inputs.mean()]), "accuracy": targets.mean().expand(2)}
        inputs.zero_(), targets.zero_()  # what is given is a copy
        return found

    def work(rank: int, collectives: Collectives) -> Any:
        return evaluate(metrics, split, torch.device("cpu"), 10, collectives)

    for found in Ranks(ranks).run(work):
        assert [quality.loss for quality in found] == pytest.approx([float(x.mean()), 2 * float(x.mean())])
        assert [quality.accuracy for quality in found] == pytest.approx([float(y.mean())] * 2)
    assert torch.equal(split.x, x)
    assert torch.equal(split.y, y)


def test_a_batch_divides_among_ranks_or_is_refused_with_what_would() -> None:
    for ranks in range(1, 9):
        collectives = Collectives(0, ranks, lambda vector: vector)
        for size in range(1, 30):
            if size % ranks == 0:
                assert rank_batch_size(size, collectives) == size // ranks
                continue
            sizes = [each for each in range(size - ranks + 1, size + ranks) if each > 0 and each % ranks == 0]
            fewer = [count for count in range(1, ranks) if size % count == 0][-1]
            would = f"{' or '.join(map(str, sizes))}, or {fewer} rank{'' if fewer == 1 else 's'}"
            words = f"--batch-size: {size} examples don't divide among {ranks} ranks; take {would}$"
            with pytest.raises(UserError, match=words):
                rank_batch_size(size, collectives)


def test_what_travels_is_what_a_mask_leaves_and_the_two_numbers() -> None:
    (state,), _ = _states(1)
    flat, place = [], 0
    for name, leaf in state.params.items():
        kept = state.masks[name].flatten().tolist() if name in state.masks else [True] * leaf.numel()
        flat += [place + at for at, stays in enumerate(kept) if stays]
        place += leaf.numel()
    assert surviving_indices(state).tolist() == [*flat, place, place + 1]
    assert surviving_indices(state).dtype == torch.int64


def test_gradients_and_numbers_are_means_over_ranks() -> None:
    (state,), _ = _states(1)
    index = surviving_indices(state)
    grads = [{name: torch.randn_like(leaf) for name, leaf in state.params.items()} for _ in range(3)]
    numbers = [(torch.tensor(1.0 + rank), torch.tensor(0.25 * rank, dtype=torch.float64)) for rank in range(3)]
    for found, (loss, metric) in Ranks(3).run(
        lambda rank, one: averaged_gradients(one, grads[rank], numbers[rank], index)
    ):
        for name, leaf in found.items():
            mean = torch.stack([each[name] for each in grads]).mean(0)
            torch.testing.assert_close(leaf, mean * state.masks[name] if name in state.masks else mean)
        assert (float(loss), loss.dtype) == (2.0, torch.float32)
        assert (float(metric), metric.dtype) == (0.25, torch.float64)


def test_a_sum_over_ranks_has_the_gradient_of_a_sum() -> None:
    """Of f(Σ v), each rank's f its own: the gradient at every rank's v is Σ f'."""
    given = [torch.tensor([1.0 + rank, -2.0], dtype=torch.float64) for rank in range(3)]

    def work(rank: int, collectives: Collectives) -> Tensor:
        mine = given[rank].clone().requires_grad_()
        (differentiable_sum(collectives, mine).square() * (rank + 1)).sum().backward()
        assert mine.grad is not None
        return mine.grad

    summed = torch.stack(given).sum(0)
    for found in Ranks(3).run(work):
        torch.testing.assert_close(found, 2 * summed * 6)
    assert math.isclose(float(summed[0]), 6)
