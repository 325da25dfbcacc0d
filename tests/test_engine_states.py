"""Launching, and several states as one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import noted
from torch import nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.distributed.data_parallel import surviving_indices
from lthfunc.training.engines.cuda_graphs import Launcher
from lthfunc.training.engines.reused_memory import GraphPools
from lthfunc.training.engines.vmapped import (
    carry_of,
    stacked,
    states_of,
    unstacked,
    vmapped,
    vmapped_eval,
)
from lthfunc.trees.rng import counter_key
from lthfunc.trees.types import TrainState

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
    assert carry.losses == [0.0] * count
    assert carry.loss.dtype == torch.float64
    keys = carry.key.reshape(-1).tolist()
    assert keys == [int(counter_key(seed, "step")) for seed in range(7, 7 + count)]
    assert carry.travels == ()
    assert all(mask.dtype == torch.float32 for mask in carry.state.masks.values())
    changed = carry.with_losses([float(number) for number in range(count)])
    assert changed.loss.shape == carry.loss.shape
    assert changed.losses == [float(number) for number in range(count)]
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
