"""Gradient, mask and Adam in one kernel, held to torch.optim in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, NEAR, assert_near, drawn, masks, normal
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.sparse.gpu.bits import pack_bits
from lthfunc.sparse.gpu.masked_adam import masked_adam
from lthfunc.training.optimizers import AdamNumbers

BETAS, EPS, RATE = (0.8, 0.95), 1e-4, 0.05


def corrections(step: int) -> Tensor:
    """Of the step that is taken, counted from 1."""
    return torch.tensor([1 / (1 - BETAS[0] ** step), 1 / (1 - BETAS[1] ** step) ** 0.5], device=DEVICE)


def by_torch(weight: Tensor, gradients: list[Tensor], decay: float, decoupled: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(weight, mean, variance) after the steps, in float64."""
    leaf = torch.nn.Parameter(weight.double().clone())
    kind: Any = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimizer = kind([leaf], lr=RATE, betas=BETAS, eps=EPS, weight_decay=decay)
    for gradient in gradients:
        leaf.grad = gradient
        optimizer.step()
    return leaf.detach(), optimizer.state[leaf]["exp_avg"], optimizer.state[leaf]["exp_avg_sq"]


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("lead", "batch", "outputs", "inputs", "decay", "decoupled", "relu"),
    [
        ((3,), (7,), 33, 45, 0.0, False, False),
        ((), (1,), 10, 100, 0.1, False, True),
        ((1,), (2, 35), 70, 65, 0.1, True, True),
    ],
)
def test_steps_equal_torch_optim(
    dtype: torch.dtype, lead: tuple[int, ...], batch: tuple[int, ...], outputs: int, inputs: int, decay: float,
    decoupled: bool, relu: bool,
) -> None:  # fmt: skip
    """Three of them: the moments of one are the next one's."""
    g = drawn(1)
    mask = masks(g, *lead, outputs, inputs, density=0.3)
    weight = normal(g, *lead, outputs, inputs) * mask
    given = [
        tuple(normal(g, *lead, *batch, side, dtype=dtype) for side in (inputs, outputs, outputs)) for _ in range(3)
    ]
    numbers = AdamNumbers(BETAS, EPS, decay, decoupled)
    rate = torch.tensor(RATE, device=DEVICE)
    found = (weight, torch.zeros_like(weight), torch.zeros_like(weight))
    gradients = []
    for step, (x, grad, gate) in enumerate(given, 1):
        found = masked_adam(
            x, grad, pack_bits(mask), *found, rate, corrections(step), numbers, gate=gate if relu else None
        )
        behind = grad.double() * (gate > 0) if relu else grad.double()
        gradients.append(behind.flatten(len(lead), -2).mT @ x.double().flatten(len(lead), -2) * mask)
    # Products are exact in float32's sums, so that no type is further off than float32's rounding.
    for mine, wanted in zip(found, by_torch(weight, gradients, decay, decoupled), strict=True):
        assert_near(mine, wanted, torch.float32)
        assert not mine[~mask].any()


def test_networks_have_their_own_rates_and_corrections() -> None:
    """At different steps of different schedules; sharing their inputs."""
    g = drawn(2)
    mask = torch.rand(3, 20, 40, generator=g).to(DEVICE) < 0.5
    weight = normal(g, 3, 20, 40) * mask
    x, grad = normal(g, 9, 40), normal(g, 3, 9, 20)
    rates = torch.tensor([0.1, 0.02, 0.003], device=DEVICE)
    several = torch.stack([corrections(step) for step in (1, 5, 90)])
    mean, variance = normal(g, 3, 20, 40) * mask, normal(g, 3, 20, 40).square() * mask
    numbers = AdamNumbers(BETAS, EPS, 0.01, True)
    together = masked_adam(x.expand(3, 9, 40), grad, pack_bits(mask), weight, mean, variance, rates, several, numbers)
    for k in range(3):
        alone = masked_adam(
            x, grad[k], pack_bits(mask[k]), weight[k], mean[k], variance[k], rates[k], several[k], numbers
        )
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one, all_of_them[k])


def test_what_was_pruned_is_zero_whatever_went_in() -> None:
    """And no argument changes, unless it is handed over as output."""
    g = drawn(3)
    mask = masks(g, 5, 70, density=0.5)
    dirty = [torch.where(mask, 1.0, float("nan")) for _ in range(3)]
    x, grad = normal(g, 70, 4).T, normal(g, 5, 4).T  # whose rows don't lie side by side
    rate, numbers = torch.tensor(RATE, device=DEVICE), AdamNumbers(BETAS, EPS, 0.1, False)
    given = (x, grad, pack_bits(mask), dirty[0], dirty[1], dirty[2], rate, corrections(1))
    before = [each.clone() for each in given]
    found = masked_adam(*given, numbers)
    for mine in found:
        assert not mine[~mask].any()
        assert mine[mask].isfinite().all()
    for each, kept in zip(given, before, strict=True):
        torch.testing.assert_close(each, kept, rtol=0, atol=0, equal_nan=True)
    own = (dirty[0], dirty[1], dirty[2])
    again = masked_adam(*given, numbers, out=own)
    for mine, written, same in zip(found, own, again, strict=True):
        assert same is written
        assert torch.equal(mine, written)


def test_without_examples_weights_decay_alone() -> None:
    mask = torch.ones(4, 4, dtype=torch.bool, device=DEVICE)
    weight, zero = torch.ones(4, 4, device=DEVICE), torch.zeros(4, 4, device=DEVICE)
    x = torch.zeros(0, 4, device=DEVICE)
    numbers, rate = AdamNumbers(BETAS, EPS, 0.5, True), torch.tensor(RATE, device=DEVICE)
    new, mean, variance = masked_adam(x, x, pack_bits(mask), weight, zero, zero, rate, corrections(1), numbers)
    torch.testing.assert_close(new, weight * (1 - RATE * 0.5))
    assert not mean.any()
    assert not variance.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 9)}, r"x: takes the shape \(3, 8\), not \(3, 9\)"),
        ({"x": torch.zeros(3, 8).double()}, "x: takes float32 or float16 or bfloat16, not float64"),
        ({"grad": torch.zeros(4, 5)}, r"grad: takes the shape \(3, 5\), not \(4, 5\)"),
        ({"bits": torch.zeros(5, 2).int()}, r"bits: takes the shape \(5, 1\), not \(5, 2\)"),
        ({"bits": torch.zeros(5, 1)}, "bits: takes int32, not float32"),
        ({"mean": torch.zeros(5, 8).half()}, "mean: takes float32, not float16"),
        ({"rate": torch.zeros(2)}, r"rate: takes the shape \(1,\), not \(2,\)"),
        ({"precision": "fp8"}, r"precision: invalid value 'fp8' \(expected ieee or tf32"),
        ({"weight": torch.zeros(5)}, r"weight: takes \(outputs, inputs\) or \(K, outputs, inputs\), not \(5,\)"),
        ({"out": (torch.zeros(8, 5).T,) * 3}, r"out \(weight\): takes contiguous memory"),
    ],
)
def test_what_a_step_cannot_take_is_told(change: dict[str, Any], words: str) -> None:
    square = torch.zeros(5, 8)
    given: dict[str, Any] = {
        "x": torch.zeros(3, 8), "grad": torch.zeros(3, 5), "bits": torch.zeros(5, 1).int(), "weight": square,
        "mean": square, "variance": square, "rate": torch.zeros(()), "corrections": torch.ones(2), **change,
    }  # fmt: skip
    placed: dict[str, Any] = {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in given.items()
    }
    if "out" in placed:
        placed["out"] = tuple(each.to(DEVICE) for each in placed["out"])
    with pytest.raises(UserError, match=words):
        masked_adam(**placed, numbers=AdamNumbers(BETAS, EPS, 0.0, False))
