"""Gradients of losses: in training, by autograd alone; and what has none, told by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from small import state_of
from test_pruning_parts import truth
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparsify.gradient_scores import gradient_in_training


class Refusing(nn.Module):
    """Cannot be differentiated by torch.func."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch._C._functorch.is_functorch_wrapped_tensor(self.fc.weight):
            raise ValueError("not under torch.func")
        out: Tensor = self.fc(x)
        return out


def test_a_loss_without_a_gradient_is_told_by_name() -> None:
    model = lf.from_module(Refusing())
    state = lf.init(model)
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]
    with pytest.raises(UserError, match=r"Refusing has no gradient.*not under torch.func"):
        lf.snip(lf.loss_of(model, state.buffers), batches)(state.params, state.masks)

    def mine(params: Any, batch: Any) -> Tensor:
        raise ValueError("my own")

    with pytest.raises(UserError, match=r"loss: '.*mine' has no gradient.*my own"):
        lf.snip(mine, batches)(state.params, state.masks)


def test_a_gradient_in_training_is_that_of_autograd_alone() -> None:
    """Of a network that torch.func cannot take, of parameters that the loss doesn't need, and without -0."""
    model = lf.from_module(Refusing())
    state = lf.prune(density=0.5)(lf.init(model))
    params, masks = {**state.params, "other": torch.ones(2)}, {**state.masks, "other": truth("x.")[0]}
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    found = gradient_in_training(lf.loss_of(model, state.buffers), (x, y))(params, masks)
    weight = (state.params["fc.weight"] * state.masks["fc.weight"]).requires_grad_()
    F.cross_entropy(F.linear(x, weight, state.params["fc.bias"]), y).backward()
    assert torch.equal(found["fc.weight"], gradient_of(weight))
    assert found.keys() == masks.keys()
    assert found["other"].tolist() == [0, 0]
    assert not any(leaf.requires_grad for leaf in (*params.values(), *found.values()))
    minus = gradient_in_training(lambda p, batch: (p["w"] * -0.0).sum(), (x, y))(
        {"w": torch.ones(2)}, {"w": truth("xx")[0]}
    )
    assert not minus["w"].signbit().any()


def test_a_gradient_in_training_is_refused_in_one_line() -> None:
    """Where autograd alone fails, the error is that of the scores: by the loss's name, with its line."""
    _, state = state_of()
    batch = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))

    def changing(params: Any, batch: Any) -> Tensor:
        squares = params["1.weight"].square()
        params["1.weight"].mul_(2.0)
        out: Tensor = squares.sum()
        return out

    def of_targets(params: Any, batch: Any) -> Tensor:
        out: Tensor = batch[1].double().mean()
        return out

    for loss, words in (
        (changing, r"changing' has no gradient \(line \d+ of .*mul_"),
        (of_targets, "of_targets.* depend on"),
    ):
        for take in (gradient_in_training(loss, batch), lf.mean_gradient(loss, [batch])):
            with pytest.raises(UserError, match=words):
                take(state.params, state.masks)


def test_a_loss_of_no_weight_has_no_scores() -> None:
    _, state = state_of()
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]

    def of_targets(params: Any, batch: Any) -> Tensor:
        out: Tensor = batch[1].double().mean()
        return out

    def flat(params: Any, batch: Any) -> Tensor:
        out: Tensor = sum(leaf.sum() for leaf in params.values()) * 0.0
        return out

    for make in (lf.snip, lf.taylor, lf.fisher, lf.movement, lf.mean_gradient):
        with pytest.raises(UserError, match=r"of_targets.* depend on no parameter"):
            make(of_targets, batches)(state.params, state.masks)
        found = make(flat, batches)(state.params, state.masks)  # which is a function of them, if a flat one
        assert not any(leaf.any() for leaf in found.values())
    assert not any(leaf.requires_grad for leaf in state.params.values())
    for bad in (0.0, -1.0):
        with pytest.raises(UserError, match=r"temperature: .*a number above 0"):
            lf.grasp(flat, batches, bad)
    with pytest.raises(UserError, match="temperature: 200 divides the network's outputs, which this loss doesn't exp"):
        lf.grasp(flat, batches)
    lf.grasp(flat, batches, 1.0)


def test_networks_side_by_side_are_scored_as_one_by_one() -> None:
    """Under vmap, where whether a gradient is zero cannot be looked at."""
    model, state = state_of()
    batches = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0])) for _ in range(2)]
    networks = [lf.init(model, seed).params for seed in range(3)]
    together = {name: torch.stack([params[name] for params in networks]) for name in networks[0]}
    for make in (lf.snip, lf.taylor, lf.movement, lf.mean_gradient):
        score = make(lf.loss_of(model, {}), batches)
        found = torch.vmap(lambda params, score=score: score(params, state.masks))(together)
        for number, params in enumerate(networks):
            for name, leaf in score(params, state.masks).items():
                torch.testing.assert_close(found[name][number], leaf)


def test_fisher_takes_all_examples_at_once_and_each_draws_for_itself() -> None:
    calls = []

    def drawing(params: Any, batch: Any) -> Tensor:
        calls.append(batch)
        out: Tensor = params["w"].sum() * (torch.rand(()) < 0.5)
        return out

    batches = [(torch.zeros(200, 1), torch.zeros(200))]
    found = lf.fisher(drawing, batches)({"w": torch.tensor([2.0, 4.0])}, {"w": truth("xx")[0]})["w"]
    assert len(calls) == 1
    share = found / torch.tensor([2.0, 8.0])  # of those whose gradient is one, not zero
    assert share[0] == share[1]
    assert 0.3 < float(share[0]) < 0.7
