"""Linear layers of blocks, held to plain PyTorch in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import DEVICE, NEAR, assert_near, drawn, normal, wide
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lthfunc.errors import UserError
from lthfunc.sparse.gpu.block_linear import (
    SIZES,
    _forward,
    _input_gradient,
    _value_gradient,
    block_linear,
    block_pattern,
    pack_blocks,
    unpack_blocks,
)


def blocks_mask(generator: torch.Generator, outputs: int, inputs: int, size: int, share: float) -> Tensor:
    """Random whole blocks; none in the second row of blocks, nor in the second column."""
    high, across = -(-outputs // size), -(-inputs // size)
    left = torch.rand(high, across, generator=generator) < share
    left[1:2] = False
    left[:, 1:2] = False
    return left.repeat_interleave(size, 0).repeat_interleave(size, 1)[:outputs, :inputs].to(DEVICE)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize(
    ("size", "batch", "outputs", "inputs", "biased"),
    [(32, (7,), 100, 150, True), (64, (1,), 40, 64, False), (128, (2, 35), 130, 300, True)],
)
def test_output_and_gradients_of_blocks(
    dtype: torch.dtype, size: int, batch: tuple[int, ...], outputs: int, inputs: int, biased: bool
) -> None:
    """Also where blocks stick out at the edges."""
    g = drawn(1)
    mask = blocks_mask(g, outputs, inputs, size, 0.8)
    pattern = block_pattern(mask, size)
    x, weight = normal(g, *batch, inputs, dtype=dtype), normal(g, outputs, inputs, dtype=dtype)
    values, bias = pack_blocks(weight, pattern), normal(g, outputs, dtype=dtype) if biased else None
    assert torch.equal(unpack_blocks(values, pattern), weight * mask)
    assert 0 < len(values) < len(pattern.row_starts) * len(pattern.column_starts)
    leaves = [leaf.requires_grad_() for leaf in (x, values, bias) if leaf is not None]
    grad = normal(g, *batch, outputs, dtype=dtype)
    y = block_linear(x, values, pattern, bias)
    found = torch.autograd.grad(y, leaves, grad)
    given = [wide(leaf) for leaf in (x, weight, bias) if leaf is not None]
    expected = given[0] @ (given[1] * mask).mT + (given[2] if biased else 0)
    wanted = list(torch.autograd.grad(expected, given, grad.double()))
    near = NEAR[dtype] * (2 if dtype == torch.bfloat16 else 1)  # some sums are of hundreds
    assert y.dtype == dtype
    assert_near(y, expected, dtype, rtol=near, atol=near)
    wanted[1] = pack_blocks(wanted[1], pattern)
    for leaf, mine, theirs in zip(leaves, found, wanted, strict=True):
        assert mine.dtype == leaf.dtype
        assert_near(mine, theirs, dtype, rtol=near, atol=near)


def test_no_block_and_no_example() -> None:
    g = drawn(2)
    for mask, n in ((torch.zeros(40, 70, dtype=torch.bool), 3), (torch.ones(40, 70, dtype=torch.bool), 0)):
        pattern = block_pattern(mask.to(DEVICE), 32)
        x, bias = normal(g, n, 70).requires_grad_(), normal(g, 40).requires_grad_()
        values = normal(g, len(pattern.rows), 32, 32).requires_grad_()
        y = block_linear(x, values, pattern, bias)
        assert torch.equal(y, bias.expand(n, 40))
        to_x, to_values, to_bias = torch.autograd.grad(y.sum(), (x, values, bias))
        assert not to_x.any()
        assert not to_values.any()
        assert to_bias.tolist() == [n] * 40


def test_a_float32_weight_is_rounded_as_it_is_read() -> None:
    """And its gradient is float32; rows of memory may be anywhere."""
    g = drawn(3)
    mask = blocks_mask(g, 64, 96, 32, 0.9)
    pattern = block_pattern(mask, 32)
    values = pack_blocks(normal(g, 64, 96).half().float(), pattern).requires_grad_()
    x, grad = normal(g, 96, 5, dtype=torch.float16).T, normal(g, 64, 5, dtype=torch.float16).T
    y = block_linear(x.requires_grad_(), values, pattern)
    to_x, to_values = torch.autograd.grad(y, (x, values), grad)
    weight = unpack_blocks(values, pattern).detach().double()
    assert_near(y, x.double() @ weight.T, torch.float16)
    assert_near(to_x, grad.double() @ weight, torch.float16)
    assert_near(to_values, pack_blocks(grad.double().T @ x.double(), pattern), torch.float32)


def test_patterns_are_lists_by_row_and_by_column() -> None:
    mask = torch.zeros(70, 100, dtype=torch.bool, device=DEVICE)
    for row, column in ((0, 99), (40, 0), (69, 99), (69, 31)):
        mask[row, column] = True
    pattern = block_pattern(mask, 32)
    assert pattern.rows.tolist() == [0, 1, 2, 2]
    assert pattern.columns.tolist() == [3, 0, 0, 3]
    assert pattern.row_starts.tolist() == [0, 1, 2, 4]
    assert pattern.column_starts.tolist() == [0, 2, 2, 2, 4]
    assert pattern.which.tolist() == [1, 2, 0, 3]
    assert (pattern.shape, pattern.size) == ((70, 100), 32)


def test_tracers_see_blocks_operations_of_known_shapes() -> None:
    g = drawn(4)
    pattern = block_pattern(blocks_mask(g, 64, 64, 32, 1.0), 32)
    x, values, bias = normal(g, 5, 64), normal(g, len(pattern.rows), 32, 32), normal(g, 64)

    def loss(values: Tensor, x: Tensor, bias: Tensor, *lists: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(names, lists, strict=True))
        return block_linear(x, values, pattern._replace(**named), bias).square().sum()

    names, lists = pattern._fields[:5], pattern[:5]
    leaves = values.clone().requires_grad_(), x.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(*leaves, bias, *lists), leaves)
    gradient: Any = torch.func.grad(loss, (0, 1))
    compiled = torch.compile(gradient, backend="aot_eager", fullgraph=True)
    traced = make_fx(gradient, tracing_mode="fake")(values, x, bias, *lists)
    for way in (gradient, compiled, traced):
        for mine, theirs in zip(way(values, x, bias, *lists), wanted, strict=True):
            assert torch.equal(mine, theirs)
    checks, starts, (rows, columns) = ("test_schema", "test_faketensor"), pattern.row_starts, pattern[1:3]
    back = (x, values, pattern.column_starts, pattern.which, rows, 64, 32, "ieee")
    torch.library.opcheck(_forward, (x, values, bias, starts, columns, 64, 32, "ieee"), test_utils=checks)
    torch.library.opcheck(_input_gradient, back, test_utils=checks)
    torch.library.opcheck(_value_gradient, (x, x, values, rows, columns, 32, "ieee"), test_utils=checks)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(3, 9)}, r"x: takes the shape \(3, 64\), not \(3, 9\)"),
        ({"x": torch.zeros(3, 64).double()}, "x: takes float32 or float16 or bfloat16, not float64"),
        ({"values": torch.zeros(1, 32, 32)}, r"values: takes the shape \(2, 32, 32\), not \(1, 32, 32\)"),
        ({"values": torch.zeros(2, 32, 32).half()}, "values: takes float32, not float16"),
        ({"bias": torch.zeros(31)}, r"bias: takes the shape \(32,\), not \(31,\)"),
        ({"precision": "tf16"}, r"precision: invalid value 'tf16' \(expected ieee or tf32"),
    ],
)
def test_what_blocks_cannot_take_is_told(change: dict[str, Any], words: str) -> None:
    pattern = block_pattern(torch.ones(32, 64, dtype=torch.bool, device=DEVICE), 32)
    given: dict[str, Any] = {"x": torch.zeros(3, 64), "values": torch.zeros(2, 32, 32), **change}
    placed: dict[str, Any] = {
        name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in given.items()
    }
    with pytest.raises(UserError, match=words):
        block_linear(pattern=pattern, **placed)


def test_what_no_pattern_can_be_made_of_is_told() -> None:
    mask = torch.ones(32, 64, dtype=torch.bool)
    with pytest.raises(UserError, match=r"size: invalid value 16 \(expected one of 32, 64, 128"):
        block_pattern(mask, 16)
    with pytest.raises(UserError, match=r"mask: takes bools \(outputs, inputs\), not torch.float32"):
        block_pattern(mask.float(), SIZES[0])
    with pytest.raises(UserError, match=r"weight: takes the shape \(32, 64\), not \(64, 32\)"):
        pack_blocks(torch.zeros(64, 32), block_pattern(mask, 32))
