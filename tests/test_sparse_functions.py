"""Functions of single numbers on the sparse engine: activations, limits and shrinkages, against float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import Head, check, check_inference, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build
from lthfunc.sparse.lowerings import activations

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

Function = Callable[[Tensor], Tensor]
aten = torch.ops.aten
FUNCTIONS: dict[str, Function] = {
    "relu": torch.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.1), "relu6": F.relu6, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "silu": F.silu, "hardtanh": F.hardtanh, "limits": lambda x: F.hardtanh(x, -0.5, 3.0),
    "hardsigmoid": F.hardsigmoid, "hardswish": F.hardswish, "elu": lambda x: F.elu(x, 0.7), "selu": F.selu,
    "celu": lambda x: F.celu(x, 0.6), "abs": torch.abs, "softplus": F.softplus,
    "steep softplus": lambda x: F.softplus(x, 2.5, 1.25), "falling softplus": lambda x: F.softplus(x, -1.0),
    "mish": F.mish, "log_sigmoid": F.logsigmoid, "softsign": F.softsign, "tanhshrink": F.tanhshrink,
    "hardshrink": F.hardshrink, "softshrink": lambda x: F.softshrink(x, 1.0),
    "threshold": lambda x: F.threshold(x, 0.5, -3.0), "clamp": lambda x: x.clamp(-1, 0.5),
    "clamp_min": lambda x: x.clamp(min=-0.5), "clamp_max": lambda x: torch.clamp_max(x, 1), "clip": lambda x: x.clip(1),
    "crossed limits": lambda x: x.clamp(3, 0.5),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.3], dtype=x.dtype)),
    "in place": lambda x: F.mish(x * 1.0, inplace=True).abs_().clamp_(0.5, 20).clamp_min_(1.0),
}  # fmt: skip
#: Where functions have an edge, or are computed otherwise on both sides.
EDGES = (
    math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 3.0, -3.0, 6.0, 20.0, -20.0, 20.5, 87.5, -87.5,
    200.0, -200.0, 1e-6, -1e-6, 1e30, -1e30,
)  # fmt: skip


class Through(nn.Module):
    """A function of each number; the layer before it has a weight of one for each channel."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Conv2d(1, 1, 1, bias=False)
        nn.init.ones_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer(x))


def values_and_slopes(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    found = module(x)
    found.backward(torch.full_like(found, 2.0))
    assert x.grad is not None
    return found.detach(), x.grad


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes_at_edges_are_pytorchs(name: str) -> None:
    """A number by a number, the derivative of each taken alone."""
    net = Through(FUNCTIONS[name])
    x = torch.tensor(EDGES).view(1, 1, 1, -1)
    found = values_and_slopes(lf.sparse_module(net, {}), x.expand(17, -1, -1, -1))
    together = values_and_slopes(net, x.expand(17, -1, -1, -1))
    alone = zip(*(values_and_slopes(net, each) for each in x.split(1, -1)), strict=True)
    for ours, *both in zip(found, together, map(torch.cat, alone, [-1] * 2), strict=True):
        # PyTorch has two slopes at NaN of some: one of single numbers, one of many.
        same = [torch.isclose(ours, theirs, 1e-5, 1e-6, equal_nan=True) for theirs in both]
        assert bool((same[0] | same[1]).all())
        assert bool((same[0] | x.isnan()).all())


def test_slopes_at_limits_are_those_of_the_pytorch_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of some releases they are one, and of others zero."""
    x = torch.tensor([-1.0, -0.999, 0.0, 2.0, 2.001, math.nan]).view(1, 1, 1, -1)
    for passes in (False, True):
        monkeypatch.setattr(activations, "_passes_at_limits", lambda passes=passes: passes)
        _, slopes = values_and_slopes(lf.sparse_module(Through(lambda x: x.clamp(-1, 2)), {}), x)
        assert (slopes / 2).flatten().tolist() == [passes, 1, 1, passes, 0, 0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes_are_those_of_float64(name: str) -> None:
    """Between all edges, relative to each number where PyTorch's own are."""
    net = Through(FUNCTIONS[name])
    x = torch.linspace(-30, 30, 2001).view(1, 1, 3, -1)
    found = values_and_slopes(lf.sparse_module(net, {}), x)
    for ours, theirs in zip(found, values_and_slopes(net.double(), x.double()), strict=True):
        assert float((ours.double() - theirs).abs().max()) <= 2e-6 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("examples", [10, pytest.param(150, marks=pytest.mark.long)])
def test_networks_of_any_shapes(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        size=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 18)),
        names=st.lists(st.sampled_from(sorted(FUNCTIONS)), min_size=1, max_size=3),
        batch=st.sampled_from([1, 5, 16, 21]),
        density=st.sampled_from([0.3, 1.0]),
        flat=st.booleans(),
    )
    def holds(size: tuple[int, int, int], names: list[str], batch: int, density: float, flat: bool) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.convs = nn.ModuleList(nn.Conv2d(size[0], size[0], 1) for _ in names)

            def forward(self, x: Tensor) -> Tensor:
                for name, each in zip(names, self.convs, strict=True):
                    x = 2 * each(x)
                    x = x + (FUNCTIONS[name](x.flatten(1)).view_as(x) if flat else FUNCTIONS[name](x.mT).mT)
                return x

        check(Head(Net(), size), size, batch, density)
        check_inference(Head(Net(), size), size, batch, density)

    holds()


class Gated(nn.Module):
    """Of two layers' features or channels, in any order of dimensions."""

    def __init__(self, function: Callable[[Gated, Tensor], Tensor], slopes: int) -> None:
        super().__init__()
        self.function, self.conv = function, nn.Conv2d(2, 4, 3, padding=1)
        self.slope = nn.PReLU(slopes) if slopes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, 3 * self.conv(x))


@pytest.mark.parametrize(
    ("function", "slopes"),
    [
        (lambda net, x: F.glu(x, 1), 0), (lambda net, x: F.glu(x.flatten(2).mT), 0), (lambda net, x: F.glu(x, -1), 0),
        (lambda net, x: F.glu(x.flatten(1)), 0), (lambda net, x: net.slope(x), 1), (lambda net, x: net.slope(x), 4),
        (lambda net, x: net.slope(x.flatten(2)), 4), (lambda net, x: net.slope(x.flatten(2).mT), 24),
        (lambda net, x: net.slope(x.flatten(1)), 96), (lambda net, x: net.slope(x.flatten(1)), 1),
    ],
)  # fmt: skip
def test_gates_and_slopes(function: Callable[[Gated, Tensor], Tensor], slopes: int) -> None:
    check(Head(Gated(function, slopes), (2, 4, 6)), (2, 4, 6), batch=19, density=0.6)
    check_inference(Head(Gated(function, slopes), (2, 4, 6)), (2, 4, 6))


class Counted(nn.Module):
    """The mean of the tokens that are not padding, of which there may be none."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        seen = x != 0
        total = (self.embed(x.clamp(max=6)) * seen[..., None]).sum(1)
        found: Tensor = self.out(
            total / seen.sum(1, keepdim=True).clamp(min=1) + (x - 3).abs().clamp(0, 2).sum(1)[:, None]
        )
        return found


def test_whole_numbers_stay_whole() -> None:
    check(Counted(), (5,), batch=19, density=0.8, tokens=7)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x.clamp(math.nan, 1), "clamp with a limit that is no number"),
        (lambda x: x.clamp(min=x * 0.5), "clamp"),
        (lambda x: aten.elu(x, 1.0, 1.0, 2.0), "elu with a scale of what is below zero"),
    ],
)
def test_refusals(function: Function, words: str) -> None:
    model = lf.from_module(Head(Through(function), (1, 2, 3)))
    with pytest.raises(lf.UserError, match=f"no rule for {words} in Head"):
        lf.sparse_program(model, lf.init(model))(torch.zeros(1, 1, 2, 3))
