"""Optimisers against torch.optim, and steps against autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import NormedNet
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.batches import batches, steps_per_epoch
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.schedules import rate_at
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset, Split, TrainState

TorchOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

PAIRS: dict[str, tuple[Optimizer, TorchOptimizer]] = {
    "sgd": (lf.sgd(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "sgd with decay": (lf.sgd(0.05, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01)),
    "momentum": (
        lf.sgd(0.05, momentum=0.9, weight_decay=5e-4),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
    ),
    "nesterov": (
        lf.sgd(0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    ),
    "adam": (lf.adam(1.2e-3), lambda p: torch.optim.Adam(p, 1.2e-3)),
    "adam with decay": (lf.adam(1e-2, weight_decay=0.1), lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1)),
    "adamw": (lf.adamw(1e-2), lambda p: torch.optim.AdamW(p, 1e-2)),
    "adamw, other betas": (
        lf.adamw(1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_optimisers_equal_torchs_over_a_hundred_steps(name: str) -> None:
    """In float64, where rounding cannot hide a wrong formula, and with the gradient of a real, curved loss."""
    ours, theirs = PAIRS[name]
    generator = torch.Generator().manual_seed(0)
    params = {
        "w": torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "b": torch.randn(7, generator=generator, dtype=torch.float64),
    }
    copies = {key: value.clone().requires_grad_() for key, value in params.items()}
    optimizer = theirs(list(copies.values()))
    state = ours.init(params)
    for step in range(100):
        x = torch.randn(4, 5, generator=generator, dtype=torch.float64)

        def loss(tree: Any, x: torch.Tensor = x) -> torch.Tensor:
            return torch.tanh(x @ tree["w"].T + tree["b"]).square().mean()

        params, state = ours.update(torch.func.grad(loss)(params), state, params, torch.tensor(step))
        optimizer.zero_grad()
        loss(copies).backward()
        optimizer.step()
        for key in params:
            torch.testing.assert_close(params[key], copies[key].detach(), rtol=1e-10, atol=1e-12)


def test_schedules_equal_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))

    def rates(make: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
        optimizer = torch.optim.SGD([parameter], 0.4)
        schedule = make(optimizer)
        out = []
        for _ in range(steps):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return out

    ours = [float(rate_at(lf.stepwise(0.4, (3, 6)), torch.tensor(i))) for i in range(10)]
    theirs = rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 6]), 10)
    assert ours == pytest.approx(theirs, rel=1e-12)
    ours = [float(rate_at(lf.cosine(0.4, 20), torch.tensor(i))) for i in range(20)]
    theirs = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), 20)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert lf.warmup(lf.constant(0.4), 4).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert float(rate_at(lf.warmup(lf.constant(0.4), 4), torch.tensor(99))) == 0.4


def test_out_of_range_settings_are_refused() -> None:
    for make in (
        lambda: lf.sgd(0.0),
        lambda: lf.sgd(0.1, momentum=1.0),
        lambda: lf.sgd(0.1, nesterov=True),
        lambda: lf.adam(1e-3, betas=(1.0, 0.9)),
        lambda: lf.adamw(1e-3, weight_decay=-1),
        lambda: lf.cosine(0.1, 0),
        lambda: lf.warmup(lf.constant(0.1), -1),
        lambda: lf.constant(0.0),
        lambda: lf.stepwise(0.0, [3]),
        lambda: lf.cosine(0.0, 10),
        lambda: lf.cyclic(0.0, 10, 2),
        lambda: lf.one_cycle(0.0, 10),
        lambda: lf.triangular(0.0, 10),
        lambda: lf.trapezoidal(0.0, 10),
    ):
        with pytest.raises(UserError, match=r": invalid value .* \(expected "):
            make()


def pruned_state(model: lf.Model, optimizer: Optimizer, fraction: float = 0.8) -> TrainState:
    return lf.with_optimizer(lf.prune(fraction=fraction)(lf.init(model, 0)), optimizer)


@pytest.mark.parametrize("name", PAIRS)
def test_pruned_weights_are_exactly_zero_after_every_step(name: str, few_digits: Dataset) -> None:
    """Weight decay and momentum included; a mutant that masks after weight decay or not at all fails this."""
    optimizer = PAIRS[name][0]
    model = lf.models.lenet300((1, 8, 8), 10)
    step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    state = pruned_state(model, optimizer)
    start = state
    for batch in batches(few_digits.train, 60, 0, 0, 12):
        state, _ = step(state, batch)
        for key, mask in state.masks.items():
            assert not state.params[key][~mask].any()
            assert lf.same_bits(mask, start.masks[key])
    moved = (state.params["fc1.weight"] != start.params["fc1.weight"])[state.masks["fc1.weight"]]
    assert moved.float().mean() > 0.5, "live weights must train"


def test_a_step_equals_plain_pytorch_on_the_same_module(few_digits: Dataset) -> None:
    """Values, BatchNorm statistics and metrics, against an ordinary training loop."""
    module = NormedNet()
    model = lf.from_module(module, init=lf.as_built)
    step = lf.make_train_step(model, lf.cross_entropy, lf.sgd(0.1, momentum=0.9))
    state = lf.with_optimizer(lf.init(model), lf.sgd(0.1, momentum=0.9))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for x, y in batches(few_digits.train, 40, 0, 0, 6):
        state, metrics = step(state, (x, y))
        out = module(x)
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(metrics["loss"], loss.detach())
        torch.testing.assert_close(metrics["accuracy"], (out.argmax(1) == y).double().mean())
    for key, value in module.state_dict().items():
        torch.testing.assert_close({**state.params, **state.buffers}[key], value, rtol=1e-4, atol=1e-5)
    assert int(state.buffers["norm.num_batches_tracked"]) == 6
    assert int(state.step) == 6


def test_steps_and_evaluations_change_no_argument(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    optimizer = lf.adam(1e-2)
    state = pruned_state(model, optimizer, 0.5)
    before = ops.clone(state)
    batch = next(batches(few_digits.train, 60, 0, 0, 1))
    new, _ = lf.make_train_step(model, lf.cross_entropy, optimizer)(state, batch)
    lf.make_eval_step(model)(state.params, state.buffers, batch)
    assert lf.same_bits(state, before)
    assert not lf.same_bits(new.buffers, before.buffers)


def test_batches_are_a_function_of_seed_and_step() -> None:
    split = Split(torch.arange(25).float(), torch.arange(25))
    whole = [y.tolist() for _, y in batches(split, 4, 7, 0, 15)]
    assert [y.tolist() for _, y in batches(split, 4, 7, 8, 15)] == whole[8:]
    first_epoch = [target for batch in whole[:6] for target in batch]
    assert len(set(first_epoch)) == len(first_epoch), "an epoch repeats no example"
    assert [y.tolist() for _, y in batches(split, 4, 8, 0, 15)] != whole
    assert [steps_per_epoch(25, size) for size in (1, 4, 25)] == [25, 6, 1]
    with pytest.raises(UserError, match=r"^batch_size: invalid value 0 "):
        steps_per_epoch(25, 0)
    with pytest.raises(UserError, match=r"^batch_size: invalid value 26 \(expected a whole number from 1 to 25"):
        next(batches(split, 26, 0, 0, 1))
