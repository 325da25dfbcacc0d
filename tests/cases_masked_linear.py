"""Linear layers under masks, of several networks at once, held to plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, NEAR, assert_near, drawn, masks, normal, wide
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc.errors import UserError
from lthfunc.sparse.gpu.bits import pack_bits
from lthfunc.sparse.gpu.masked_linear import _forward, _input_gradient, _weight_gradient, masked_linear


def by_torch(x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    y = x @ (weight * mask).mT
    y = y if bias is None else y + bias.unsqueeze(-2)
    return y.relu() if relu else y


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [*((dtype, dtype) for dtype in NEAR), (torch.float16, torch.float32), (torch.bfloat16, torch.float32)],
)
@pytest.mark.parametrize(
    ("lead", "batch", "outputs", "inputs", "biased", "relu"),
    [((3,), (7,), 33, 45, True, True), ((), (1,), 10, 100, False, False), ((1,), (70,), 70, 20, True, True)],
)
def test_output_and_gradients(
    dtype: torch.dtype, kept: torch.dtype, lead: tuple[int, ...], batch: tuple[int, ...], outputs: int, inputs: int,
    biased: bool, relu: bool,
) -> None:  # fmt: skip
    """Weights stand at pruned places too, and count as zero there."""
    g = drawn(1)
    mask = masks(g, *lead, outputs, inputs, density=0.3)
    x, weight = normal(g, *lead, *batch, inputs, dtype=dtype), normal(g, *lead, outputs, inputs, dtype=kept)
    bias = normal(g, *lead, outputs, dtype=kept) if biased else None
    grad = normal(g, *lead, *batch, outputs, dtype=dtype)
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias) if leaf is not None]
    y = masked_linear(x, weight, pack_bits(mask), bias, relu=relu)
    found = torch.autograd.grad(y, leaves, grad)
    # What is multiplied is rounded to x's type.
    given = [wide(leaf.to(dtype) if leaf is weight else leaf) for leaf in leaves]
    sums = by_torch(given[0], given[1], mask, given[2] if biased else None, False)
    # Which sums are above zero is rounding's where they are near it: gradients are those of the y that came out.
    wants = torch.autograd.grad(sums, given, grad.double() * (y > 0) if relu else grad.double())
    assert y.dtype == dtype
    # The interpreter cuts each weight off, not only the results.
    near = NEAR[dtype] * (3 if kept != dtype else 1)
    assert_near(y, sums.relu() if relu else sums, dtype, rtol=near, atol=near)
    for leaf, mine, wanted in zip(leaves, found, wants, strict=True):
        assert mine.dtype == leaf.dtype
        mine_near = near if leaf is x else NEAR[kept]
        assert_near(mine, wanted, kept, rtol=mine_near, atol=mine_near)
    assert not found[1][~mask].any()


def test_networks_side_by_side_equal_each_alone() -> None:
    """To the bit, and with inputs that they share."""
    g = drawn(2)
    mask = torch.rand(3, 20, 40, generator=g).to(DEVICE) < 0.5
    weight, bias = normal(g, 3, 20, 40).requires_grad_(), normal(g, 3, 20).requires_grad_()
    x, grad = normal(g, 9, 40).requires_grad_(), normal(g, 3, 9, 20)
    together = masked_linear(x.expand(3, 9, 40), weight, pack_bits(mask), bias, relu=True)
    shared, *gradients = torch.autograd.grad(together, (x, weight, bias), grad)
    total = torch.zeros_like(x)
    for k in range(3):
        alone = masked_linear(x, weight[k], pack_bits(mask[k]), bias[k], relu=True)
        assert torch.equal(alone, together[k])
        own, to_weight, to_bias = torch.autograd.grad(alone, (x, weight, bias), grad[k])
        total += own
        assert torch.equal(to_weight[k], gradients[0][k])
        assert torch.equal(to_bias[k], gradients[1][k])
    torch.testing.assert_close(shared, total)


def test_any_layout_of_memory_and_any_number_of_examples() -> None:
    g = drawn(3)
    mask = torch.rand(20, 40, generator=g).to(DEVICE) < 0.5
    weight, x, grad = normal(g, 40, 20).T, normal(g, 40, 5, 3).permute(2, 1, 0), normal(g, 20, 5, 3).permute(2, 1, 0)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    y = masked_linear(x, weight, pack_bits(mask), relu=True)
    given = [wide(leaf) for leaf in leaves]
    expected = by_torch(given[0], given[1], mask, None, True)
    assert_near(y, expected, torch.float32)
    for mine, wanted in zip(
        torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, given, grad.double()), strict=True
    ):
        assert_near(mine, wanted, torch.float32)
    none = x[:, :0].detach().requires_grad_()
    y = masked_linear(none, leaves[1], pack_bits(mask))
    assert y.shape == (3, 0, 20)
    gradients = torch.autograd.grad(y.sum(), (none, leaves[1]))
    assert gradients[0].shape == (3, 0, 40)
    assert not gradients[1].any()


def test_nan_passes_the_relu_as_pytorchs() -> None:
    x = torch.tensor([[1.0, 0.0], [float("nan"), 1.0], [-1.0, 0.0]], device=DEVICE, requires_grad=True)
    weight = torch.eye(2, device=DEVICE, requires_grad=True)
    mask = torch.ones(2, 2, dtype=torch.bool, device=DEVICE)
    y, wanted = masked_linear(x, weight, pack_bits(mask), relu=True), (x @ weight.mT).relu()
    torch.testing.assert_close(y, wanted, equal_nan=True)
    for mine, theirs in zip(
        torch.autograd.grad(y.sum(), (x, weight)), torch.autograd.grad(wanted.sum(), (x, weight)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, equal_nan=True)


def test_tracers_see_operations_of_known_shapes() -> None:
    """Compiled whole, under torch.func, and traced with fake tensors, to the same bits."""
    g = drawn(4)
    x, weight, bias = normal(g, 2, 5, 12), normal(g, 2, 6, 12), normal(g, 2, 6)
    bits = pack_bits(torch.rand(2, 6, 12, generator=g).to(DEVICE) < 0.5)

    def loss(weight: Tensor, x: Tensor, bits: Tensor, bias: Tensor) -> Tensor:
        return masked_linear(x, weight, bits, bias, relu=True).square().sum()

    leaves = weight.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(*leaves, bits, bias), leaves)
    gradient: Any = torch.func.grad(loss, (0, 1))
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    traced = make_fx(gradient, tracing_mode="fake")(weight, x, bits, bias)
    for way in (gradient, compiled, traced):
        for mine, theirs in zip(way(weight, x, bits, bias), wanted, strict=True):
            assert torch.equal(mine, theirs)
    y = masked_linear(x, weight, bits, bias, relu=True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(_forward, (x, weight, bits, bias, True, "ieee"), test_utils=checks)
    torch.library.opcheck(_input_gradient, (y, y, weight, bits, "ieee"), test_utils=checks)
    torch.library.opcheck(_weight_gradient, (x, y, None, weight, bits, True, "ieee"), test_utils=checks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 9)}, r"x: takes the shape \(3, 8\), not \(3, 9\)"),
        ({"x": torch.zeros(3, 8).double()}, "x: takes float32 or float16 or bfloat16, not float64"),
        ({"weight": torch.zeros(5, 8).half()}, "weight: takes float32, not float16"),
        ({"x": torch.zeros(3, 8).half(), "weight": torch.zeros(5, 8).bfloat16()}, "takes float16 or float32, not bf"),
        ({"weight": torch.zeros(2, 2, 5, 8)}, r"weight: takes \(outputs, inputs\) or \(K, outputs, inputs\), not"),
        ({"bits": torch.zeros(5, 8).bool()}, r"bits: takes the shape \(5, 1\), not \(5, 8\)"),
        ({"bias": torch.zeros(5).half()}, "bias: takes float32, not float16"),
        ({"precision": "tf16"}, r"precision: invalid value 'tf16' \(expected ieee or tf32"),
    ],
)
def test_what_a_layer_cannot_take_is_told(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "x": torch.zeros(3, 8), "weight": torch.zeros(5, 8), "bits": torch.zeros(5, 1).int(), **change,
    }  # fmt: skip
    placed: dict[str, Any] = {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in given.items()
    }
    with pytest.raises(UserError, match=words):
        masked_linear(**placed)
