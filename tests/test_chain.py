"""Parts of optimisers against PyTorch's own tools, optax, and loops written by hand, in float64 and under masks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import swa_utils

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.trees.ops import tree_map
from lthfunc.trees.types import TrainState

STEPS, BATCH, RATE = 12, 8, 0.05
ONE = {"w": torch.ones(1)}


class Net(nn.Module):
    """Weights, biases, and statistics of a batch normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc2(torch.tanh(self.norm(self.fc1(x))))
        return found


MODEL = lf.from_module(Net())
DRAW = torch.Generator().manual_seed(0)
X = torch.randn(STEPS, BATCH, 6, generator=DRAW, dtype=torch.float64)
Y = torch.randint(0, 3, (STEPS, BATCH), generator=DRAW)


def wide(state: TrainState) -> TrainState:
    return tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, state)


def start() -> TrainState:
    return wide(lf.prune(fraction=0.4)(lf.init(MODEL, 1)))


def ours(optimizer: lf.Optimizer, x: Tensor = X, y: Tensor = Y) -> TrainState:
    step = lf.make_train_step(MODEL, lf.cross_entropy, optimizer)
    state = lf.with_optimizer(start(), optimizer)
    for batch in zip(x, y, strict=True):
        state, _ = step(state, batch)
        assert all(not state.params[name][~mask].any() for name, mask in state.masks.items())
    return state


class Loop:
    """The same network in PyTorch's own way, its gradients masked by hand."""

    def __init__(self) -> None:
        state = start()
        self.net, self.masks = Net().double(), state.masks
        self.net.load_state_dict({**state.params, **state.buffers})

    def backward(self, x: Tensor, y: Tensor, share: float = 1.0) -> None:
        (nn.functional.cross_entropy(self.net(x), y) * share).backward()
        for name, mask in self.masks.items():
            grad = self.net.get_parameter(name).grad
            assert grad is not None
            grad *= mask

    def train(
        self,
        optimizer: torch.optim.Optimizer,
        before: Callable[[], Any] = lambda: None,
        after: Callable[[int], Any] = lambda step: None,
    ) -> None:
        """before: called between the gradient and the optimiser; after: with the number of each step, from 1."""
        for step, batch in enumerate(zip(X, Y, strict=True), 1):
            optimizer.zero_grad()
            self.backward(*batch)
            before()
            optimizer.step()
            after(step)

    def adam(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.net.parameters(), RATE)


def same(state: TrainState, net: nn.Module) -> None:
    theirs = net.state_dict()
    for name, leaf in {**state.params, **state.buffers}.items():
        torch.testing.assert_close(leaf, theirs[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("part", "clip"),
    [
        (lf.clip_by_global_norm(0.3), lambda net: clip_grad_norm_(net.parameters(), 0.3)),
        (lf.clip_by_global_norm(100.0), lambda net: clip_grad_norm_(net.parameters(), 100.0)),
        (lf.clip_by_value(0.02), lambda net: clip_grad_value_(net.parameters(), 0.02)),
    ],
    ids=["norm", "norm that is not exceeded", "value"],
)
def test_clipping_is_torchs(part: lf.Part, clip: Callable[[nn.Module], Any]) -> None:
    loop = Loop()
    loop.train(torch.optim.SGD(loop.net.parameters(), RATE, 0.9), lambda: clip(loop.net))
    same(ours(lf.chain(part, lf.sgd(RATE, 0.9))), loop.net)


def test_accumulation_is_the_batch_in_parts() -> None:
    """As PyTorch's loop with several backward passes: each part normalised by itself."""
    loop = Loop()
    optimizer = loop.adam()
    for x, y in zip(X, Y, strict=True):
        optimizer.zero_grad()
        for first in range(0, BATCH, 2):
            loop.backward(x[first : first + 2], y[first : first + 2], 0.25)
        optimizer.step()
    same(ours(lf.chain(lf.accumulate(4), lf.adam(RATE))), loop.net)


def test_without_normalisation_accumulation_is_the_whole_batch() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))
    begin = wide(lf.init(model))
    found = []
    for optimizer in (lf.adam(RATE), lf.chain(lf.accumulate(4), lf.adam(RATE))):
        step, state = lf.make_train_step(model, lf.cross_entropy, optimizer), lf.with_optimizer(begin, optimizer)
        for batch in zip(X, Y, strict=True):
            state, metrics = step(state, batch)
        found.append((state.params, metrics["loss"], metrics["accuracy"]))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)
    with pytest.raises(UserError, match="accumulate: 7 examples don't divide into 4 equal parts"):
        step(state, (X[0, :7], Y[0, :7]))


def test_a_trainers_batch_size_is_that_of_a_part() -> None:
    data = lf.data.from_tensors("own", (X.flatten(0, 1).float(), Y.flatten()), (X[0].float(), Y[0]), val=16)
    model = lf.from_module(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)))

    def trained(optimizer: lf.Optimizer, size: int) -> TrainState:
        trainer = lf.make_trainer(model, data, optimizer=optimizer, batch_size=size)
        assert trainer.batch_size == 16
        return lf.fit(trainer, lf.init(model), seed=0, until=9, eval_every=3).state

    parts, whole = trained(lf.chain(lf.accumulate(4), lf.sgd(0.1)), 4), trained(lf.sgd(0.1), 16)
    torch.testing.assert_close(parts.params, whole.params)


@pytest.mark.parametrize(
    ("part", "theirs", "counts"),
    [
        (lf.ema(0.7, debias=False), {"multi_avg_fn": swa_utils.get_ema_multi_avg_fn(0.7)}, lambda step: True),
        (lf.swa(5, 3), {}, lambda step: step >= 5 and (step - 5) % 3 == 0),
    ],
    ids=["ema", "swa"],
)
def test_averages_are_torchs(part: lf.Part, theirs: dict[str, Any], counts: Callable[[int], bool]) -> None:
    """Of batch normalisation's statistics, too."""
    loop = Loop()
    average: Any = swa_utils.AveragedModel(loop.net, use_buffers=True, **theirs)
    loop.train(loop.adam(), after=lambda step: average.update_parameters(loop.net) if counts(step) else None)
    state = ours(lf.chain(lf.adam(RATE), part))
    same(state, loop.net)
    found = lf.averaged(state)
    theirs_now = {**average.module.state_dict(), "norm.num_batches_tracked": state.buffers["norm.num_batches_tracked"]}
    for name, leaf in {**found.params, **found.buffers}.items():
        torch.testing.assert_close(leaf, theirs_now[name], rtol=1e-9, atol=1e-12)
    assert all(not found.params[name][~mask].any() for name, mask in found.masks.items())


def test_an_average_without_bias_weighs_the_first_steps_like_all_others() -> None:
    optimizer = lf.chain(lf.sgd(RATE), lf.ema(0.9))
    step, state = lf.make_train_step(MODEL, lf.cross_entropy, optimizer), lf.with_optimizer(start(), optimizer)
    weights: list[float] = []
    seen: list[Tensor] = []
    for batch in zip(X, Y, strict=True):
        state, _ = step(state, batch)
        weights = [0.9 * weight for weight in weights] + [0.1]
        seen.append(state.params["fc1.weight"])
    mean = torch.tensordot(torch.tensor(weights, dtype=torch.float64), torch.stack(seen), 1) / sum(weights)
    torch.testing.assert_close(lf.averaged(state).params["fc1.weight"], mean, rtol=1e-9, atol=1e-12)


def test_before_its_start_an_average_is_the_network_of_now() -> None:
    state = ours(lf.chain(lf.adam(RATE), lf.swa(STEPS + 1)))
    assert lf.same_bits(lf.averaged(state)[:2], state[:2])
    with pytest.raises(UserError, match="averaged: the optimiser keeps no average"):
        lf.averaged(ours(lf.adam(RATE)))


def test_sharpness_aware_minimisation_is_algorithm_1() -> None:
    loop = Loop()
    optimizer = torch.optim.SGD(loop.net.parameters(), RATE, 0.9)
    for x, y in zip(X, Y, strict=True):
        optimizer.zero_grad()
        loop.backward(x, y)
        before, statistics = copy.deepcopy(loop.net.state_dict()), loop.net.norm
        grads = {name: param.grad for name, param in loop.net.named_parameters() if param.grad is not None}
        norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
        for name, grad in grads.items():
            loop.net.get_parameter(name).data += 0.3 * grad / norm
        optimizer.zero_grad()
        loop.backward(x, y)
        with torch.no_grad():
            for name, param in loop.net.named_parameters():
                param.copy_(before[name])
            for name, buffer in statistics.named_buffers():
                buffer.copy_(before[f"norm.{name}"])
        optimizer.step()
    same(ours(lf.chain(lf.sam(0.3), lf.sgd(RATE, 0.9))), loop.net)


def test_lookahead_is_algorithm_1() -> None:
    loop = Loop()
    slow = copy.deepcopy(loop.net)

    def meet(step: int) -> None:
        for behind, ahead in zip(slow.parameters(), loop.net.parameters(), strict=True):
            if step % 5 == 0:
                behind.data += 0.4 * (ahead.data - behind.data)
                ahead.data.copy_(behind.data)

    loop.train(loop.adam(), after=meet)
    same(ours(lf.chain(lf.adam(RATE), lf.lookahead(5, 0.4))), loop.net)


def groups(net: nn.Module, *each: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameter groups: the matrices, and the rest."""
    params = list(net.parameters())
    parts = [p for p in params if p.ndim > 1], [p for p in params if p.ndim == 1]
    return [{"params": part, **given} for part, given in zip(parts, each, strict=True)]


@pytest.mark.parametrize(
    ("optimizer", "theirs", "given"),
    [
        (lf.adamw(RATE, weight_decay=0.3, decays=lf.is_matrix), torch.optim.AdamW, ({}, {"weight_decay": 0.0})),
        (lf.adam(RATE, weight_decay=0.3, decays=lf.all_but("*bias", "norm*")), torch.optim.Adam,
         ({}, {"weight_decay": 0.0})),
        (lf.sgd(RATE, 0.9, weight_decay=0.3, decays=lf.is_matrix), torch.optim.SGD,
         ({"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.0})),
        (lf.chain(lf.adam(RATE), lf.decay_weights(0.3, RATE, lf.is_matrix)), torch.optim.AdamW,
         ({}, {"weight_decay": 0.0})),
        (lf.chain(lf.adamw(RATE, weight_decay=0.3), lf.scale_rates({"*.bias": 0.2, "norm*": 0.2})), torch.optim.AdamW,
         ({}, {"lr": RATE * 0.2})),
    ],
)  # fmt: skip
def test_rates_and_decay_by_name_are_torchs_parameter_groups(
    optimizer: lf.Optimizer, theirs: Any, given: tuple[dict[str, Any], ...]
) -> None:
    loop = Loop()
    loop.train(theirs(groups(loop.net, *given), lr=RATE, weight_decay=0.3))
    same(ours(optimizer), loop.net)
