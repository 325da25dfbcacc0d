"""Lowerings of tokens at any shapes, batch sizes and densities: gradients against float64 networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import check, check_inference, kernels  # noqa: F401
from test_sparse_llama import ROTARY
from token_networks import Tokens, attended, joined
from torch import Tensor, nn

from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

INS = 3
Function = Callable[[Tokens, Tensor], Tensor]


def quotients(draw: st.DataObject) -> Function:
    parts: list[Function] = [
        lambda net, x: x, lambda net, x: x[:, :1], lambda net, x: x[..., :1], lambda net, x: x.mean(1, keepdim=True),
        lambda net, x: net.norm.weight, lambda net, x: x.flatten(1)[:, :1, None],
    ]  # fmt: skip
    above, below = draw.draw(st.sampled_from(parts)), draw.draw(st.sampled_from(parts))
    return lambda net, x: x + above(net, x) / (1.5 + below(net, torch.tanh(x)).square())


def powers(draw: st.DataObject) -> Function:
    power = draw.draw(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 2.0, 3.0, 0.5, -0.5, -1]))
    if power >= 2:
        return lambda net, x: torch.tanh(x) ** power - torch.pow(net.root.weight, power)
    return lambda net, x: (x.square() + 0.5) ** power


def reductions(draw: st.DataObject) -> Function:
    dims = draw.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True))
    negative, keep = draw.draw(st.booleans()), draw.draw(st.booleans())
    mean = draw.draw(st.booleans())

    def function(net: Tokens, x: Tensor) -> Tensor:
        split = x.unflatten(-1, (net.heads, -1))
        given = tuple(dim - 4 if negative else dim for dim in dims)
        found = torch.tanh(split).mean(given, keepdim=keep) if mean else split.sum(dim=given, keepdim=keep)
        if not keep:
            for dim in sorted(dims):
                found = found.unsqueeze(dim)
        gated: Tensor = (split * torch.sigmoid(found)).flatten(2)
        return gated

    return function


def repeats(draw: st.DataObject) -> Function:
    times, dim = draw.draw(st.integers(1, 4)), draw.draw(st.sampled_from([1, -2, 2, -1]))
    stretched = draw.draw(st.booleans())

    def function(net: Tokens, x: Tensor) -> Tensor:
        sizes = [1, 1, 1]
        sizes[dim] = times
        found = torch.relu(x).repeat_interleave(times, dim) if stretched else torch.relu(x).repeat(*sizes)
        back = found.unflatten(dim, (x.shape[dim], times) if stretched else (times, x.shape[dim]))
        place = dim % 3 + stretched
        weighed: Tensor = back * torch.arange(1.0, times + 1).to(x.dtype).view(-1, *[1] * (3 - place))
        return weighed.sum(place)

    return function


def rotary(draw: st.DataObject) -> Function:
    turned = ROTARY[draw.draw(st.sampled_from(sorted(ROTARY)))]

    def function(net: Tokens, x: Tensor) -> Tensor:
        q, k, v = net.split(torch.cat([x, x], -1)[..., : x.shape[-1]])
        q, k = (turned(torch.cat([each, torch.tanh(each)], -1)) for each in (q, k))  # an even number of features
        return joined(attended((q, k, v), is_causal=True))

    return function


def masked(draw: st.DataObject) -> Function:
    """Of one mask, one for each head, for each example, or for both; of truths or of numbers; all see themselves."""
    of_heads, of_examples, numbers = (draw.draw(st.booleans()) for _ in range(3))
    shared, causal, seed = draw.draw(st.booleans()), draw.draw(st.booleans()), draw.draw(st.integers(0, 99))

    generator = torch.Generator().manual_seed(seed)
    shown, biases = (make(3, 13, 13, generator=generator) for make in (torch.rand, torch.randn))

    def function(net: Tokens, x: Tensor) -> Tensor:
        length = x.shape[1]
        seen = shown[: net.heads if of_heads else 1, :length, :length] < 0.6
        seen = (seen.tril() if causal else seen) | torch.eye(length, dtype=torch.bool)
        if of_examples:
            of_each = x[..., :1] > 0
            seen = of_each.transpose(1, 2)[:, None] & seen | torch.eye(length, dtype=torch.bool)
        q, k, v = net.split(x)
        if shared:
            k, v = k[:, :1], v[:, :1]
        if numbers and not of_examples:
            bias = biases[: len(seen), :length, :length].masked_fill(~seen, -torch.inf)
            return joined(attended((q, k, v), attn_mask=bias.to(x.dtype), enable_gqa=shared))
        if numbers:
            scores = (q @ k.expand(q.shape).mT).masked_fill(~seen, -1e9)
            return joined(scores.softmax(-1) @ v.expand(q.shape))
        return joined(attended((q, k, v), attn_mask=seen, enable_gqa=shared))

    return function


def activations(draw: st.DataObject) -> Function:
    """Of small numbers and of large ones."""
    kinds: list[Callable[[Tensor], Tensor]] = [
        F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu, lambda x: F.silu(x) * x, lambda x: F.gelu(-x) + x,
    ]  # fmt: skip
    kind, size = draw.draw(st.sampled_from(kinds)), draw.draw(st.sampled_from([0.01, 1.0, 5.0, 30.0]))
    return lambda net, x: kind(x * size) / size


def choices(draw: st.DataObject) -> Function:
    wheres: list[Callable[[Tensor], Tensor]] = [
        lambda x: x > 0.1, lambda x: x[..., :1] <= 0, lambda x: x[:, -1:] > 0, lambda x: ~(x >= 0.2),
        lambda x: (x > 0) & (x[:, :1] < 0.3), lambda x: torch.arange(x.shape[1])[:, None] % 2 == 0,
    ]  # fmt: skip
    where = draw.draw(st.sampled_from(wheres))
    kind = draw.draw(st.sampled_from(["both", "number", "first", "fill", "product", "parameter"]))

    def function(net: Tokens, x: Tensor) -> Tensor:
        truths, y = where(x), torch.tanh(x)
        return {
            "both": lambda: torch.where(truths, y, 0.3 * x), "number": lambda: torch.where(truths, y, 0.5),
            "first": lambda: torch.where(truths, -2.0, x), "fill": lambda: y.masked_fill(truths, 1.5),
            "product": lambda: y * truths + truths.to(x.dtype),
            "parameter": lambda: torch.where(truths, y, net.norm.bias),
        }[kind]()  # fmt: skip

    return function


def parts(draw: st.DataObject) -> Function:
    """Joined, repeated and selected, at any place of any dimension."""
    dim, place = draw.draw(st.sampled_from([1, 2, -1, -2])), draw.draw(st.floats(0, 0.999))
    start, step = draw.draw(st.floats(0, 0.999)), draw.draw(st.integers(1, 3))
    stacked = draw.draw(st.booleans())

    def function(net: Tokens, x: Tensor) -> Tensor:
        size = x.shape[dim]
        one = x.select(dim, int(place * size)).unsqueeze(dim)
        some = [slice(None)] * 3
        some[dim % 3] = slice(int(start * size), None, step)
        within = [slice(None)] * 3
        within[dim % 3] = slice(1, size + 1)
        found = torch.cat([torch.relu(x), x[tuple(some)], one], dim)[tuple(within)]
        if stacked:
            return torch.stack([found, x], dim % 3).select(dim % 3, 0) + one.expand(x.shape)
        return found * one.expand(x.shape) + torch.cat([x, x], 1)[:, x.shape[1] // 2 :][:, : x.shape[1]]

    return function


FORMS: dict[str, Callable[[st.DataObject], Function]] = {
    each.__name__: each
    for each in (quotients, powers, reductions, repeats, rotary, masked, activations, choices, parts)
}


@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        length=st.integers(1, 13),
        heads=st.integers(1, 3),
        each=st.integers(1, 7),
        batch=st.sampled_from([1, 5, 16, 21, 37]),
        density=st.sampled_from([0.0, 0.3, 1.0]),
        draw=st.data(),
    )
    def holds(length: int, heads: int, each: int, batch: int, density: float, draw: st.DataObject) -> None:
        net = Tokens(FORMS[form](draw), INS, heads * each, heads)
        check(net, (length * INS,), batch, density)

    holds()


class Residual(nn.Module):
    """Layers whose values are added to what they read, in either order, some of them frozen."""

    def __init__(self, width: int, kinds: str, frozen: list[bool]) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.first, self.layers, self.kinds = nn.Linear(INS, width), nn.ModuleList(), kinds
        self.layers.extend(nn.Linear(width, width) for _ in kinds)
        self.out = nn.Linear(width, 3)
        for leaf, holds in zip([*self.first.parameters(), *self.layers.parameters()], frozen, strict=False):
            leaf.requires_grad_(not holds)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.unflatten(1, (-1, INS)))
        for kind, layer in zip(self.kinds, self.layers, strict=True):
            y = layer(torch.relu(x) if kind in "rl" else x)
            x = {"r": x + y, "l": y + x, "p": x * y, "g": x + F.gelu(y), "t": torch.relu(y + x)}[kind]
        found: Tensor = self.out(x)
        return found


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.long)])
def test_residual_layers_and_frozen_leaves(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        length=st.integers(1, 13),
        width=st.integers(1, 20),
        kinds=st.text("rlpgt", min_size=1, max_size=4),
        frozen=st.lists(st.booleans(), max_size=10),
        batch=st.sampled_from([1, 5, 16, 21, 37]),
        density=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def holds(length: int, width: int, kinds: str, frozen: list[bool], batch: int, density: float) -> None:
        net = Residual(width, kinds, frozen)
        check(net, (length * INS,), batch, density)
        check_inference(net, (length * INS,), batch, density)

    holds()
