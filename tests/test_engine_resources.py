"""Engines by name, compilers, threads, memory and precisions; evaluation and ranks."""

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
from test_engine_states import _states
from threads_as_ranks import Ranks
from torch import Tensor

from lthfunc.distributed.collectives import Collectives
from lthfunc.distributed.data_parallel import averaged_gradients, differentiable_sum, rank_batch_size, surviving_indices
from lthfunc.errors import UserError
from lthfunc.training import cpu_threads, malloc, precision
from lthfunc.training.engines import toolchain
from lthfunc.training.engines.table import engine_for, make_engine
from lthfunc.training.evaluation import chunk_for, evaluate
from lthfunc.trees.side_effects import SideEffects
from lthfunc.trees.types import Split

# ---- engines by name, compilers, threads, memory, precisions ----


def test_auto_compiles_from_three_thousand_steps_on() -> None:
    assert (engine_for(2_999), engine_for(3_000), engine_for(3_001)) == ("eager", "compile", "compile")


def test_a_module_that_draws_elsewhere_runs_eagerly() -> None:
    work: Any = SimpleNamespace(
        side_effects=SideEffects(global_rngs=("numpy", "random")), model=SimpleNamespace(name="net")
    )
    for name in ("compile", "no-such", lambda work: "never"):
        with pytest.raises(
            UserError, match=r"^engine: net draws from numpy and random in forward, which only the engine e"
        ):
            make_engine(name, work)  # type: ignore[arg-type]
    assert make_engine("eager", work).name == "eager"
    tidy: Any = SimpleNamespace(side_effects=SideEffects(), model=None)
    own = make_engine("eager", tidy)
    assert make_engine(lambda work: own if work is tidy else None, tidy) is own  # type: ignore[arg-type, return-value]
    assert make_engine("compile", tidy).name == "compile"
    with pytest.raises(UserError, match=r"^engine: unknown name 'no-such'"):
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
        cpu_threads.check_threads(number, "--jobs")
    with pytest.raises(
        UserError, match=rf"--jobs: invalid value {most + 1} \(expected a whole number from 1 to {most} "
    ):
        cpu_threads.check_threads(most + 1, "--jobs")
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
    with pytest.raises(UserError, match=r"^threads: invalid value 0"), cpu_threads.using_threads(0):
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
    with pytest.raises(UserError, match=r"^precision: invalid value 'fp16' \(expected one of fp32, bf16 on cpu"):
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
            words = f"^batch_size: {size} examples don't divide among {ranks} ranks; take {would}$"
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
