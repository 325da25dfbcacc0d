"""A small Llama by hand on the sparse engine, its parts in the forms that people write, against float64 networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import check, check_inference, kernels  # noqa: F401
from token_networks import Tokens
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

VOCABULARY, LENGTH, WIDTH, HEADS, SHARED = 11, 7, 16, 4, 2


class RootMean(nn.Module):
    """RMS normalisation (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, width: int, by: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.by = nn.Parameter(torch.rand(width) + 0.5), by

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.by(x)


ROOTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rsqrt": lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3),
    "float": lambda x: (
        (x.float() if x.dtype == torch.float32 else x) * (x.square().mean(dim=-1, keepdim=True) + 1e-3).rsqrt()
    ),
    "sqrt": lambda x: x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + 1e-3),
    "power": lambda x: x * ((x**2).mean(-1, keepdim=True) + 1e-3) ** -0.5,
}


def angles(length: int, width: int, dtype: torch.dtype) -> Tensor:
    """Of each place and pair of features (Su et al. 2021, sec. 3.2.2), (length, width / 2)."""
    rates = 1.0 / 100.0 ** (torch.arange(0, width, 2).to(dtype) / width)
    return torch.outer(torch.arange(length).to(dtype), rates)


def rotated_halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def by_halves(x: Tensor) -> Tensor:
    table = torch.cat([angles(x.shape[-2], x.shape[-1], x.dtype)] * 2, -1)
    return x * table.cos() + rotated_halves(x) * table.sin()


def interleaved(x: Tensor) -> Tensor:
    table = angles(x.shape[-2], x.shape[-1], x.dtype)
    cos, sin = table.cos()[None, None], table.sin()[None, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def in_pairs(x: Tensor) -> Tensor:
    pairs = x.unflatten(-1, (-1, 2))
    table = angles(x.shape[-2], x.shape[-1], x.dtype).repeat_interleave(2, -1)
    even, odd = pairs.unbind(-1)
    return x * table.cos() + torch.stack((-odd, even), -1).reshape(x.shape) * table.sin()


Repeated = Callable[[Tensor, int], Tensor]
ROTARY: dict[str, Callable[[Tensor], Tensor]] = {"halves": by_halves, "interleaved": interleaved, "pairs": in_pairs}


def interleave_heads(x: Tensor, times: int) -> Tensor:
    return x.repeat_interleave(times, dim=1)


def expand_heads(x: Tensor, times: int) -> Tensor:
    n, heads, length, width = x.shape
    return x[:, :, None].expand(n, heads, times, length, width).reshape(n, heads * times, length, width)


class Block(nn.Module):
    """Attention with shared keys and values, and SwiGLU (Shazeer 2020, eq. 6)."""

    def __init__(self, root: str, rotary: Callable[[Tensor], Tensor], repeated: Repeated) -> None:
        super().__init__()
        each = WIDTH // HEADS
        self.rotary, self.repeated = rotary, repeated
        self.first, self.second = RootMean(WIDTH, ROOTS[root]), RootMean(WIDTH, ROOTS[root])
        self.q, self.out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, each * SHARED, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 24, bias=False) for _ in range(2))
        self.down = nn.Linear(24, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        heads = [layer(h).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        q, k = (self.rotary(each) for each in heads[:2])
        k, v = (self.repeated(each, HEADS // SHARED) for each in (k, heads[2]))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        h = self.second(x)
        found: Tensor = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return found


class Llama(nn.Module):
    """Two blocks between an embedding and its transpose."""

    def __init__(self, root: str, rotary: Callable[[Tensor], Tensor], repeated: Repeated) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block(root, rotary, repeated) for _ in range(2)))
        self.norm, self.head = RootMean(WIDTH, ROOTS[root]), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.blocks(self.table(tokens))))
        return found


@pytest.mark.parametrize(
    ("root", "rotary", "repeated"),
    [("rsqrt", "halves", interleave_heads), ("sqrt", "interleaved", expand_heads), ("power", "pairs", expand_heads)],
)
def test_a_llama(root: str, rotary: str, repeated: Repeated) -> None:
    net = Llama(root, ROTARY[rotary], repeated)
    check(net, (LENGTH,), 20, 0.5, tokens=VOCABULARY)
    if rotary == "halves":
        check_inference(net, (LENGTH,), tokens=VOCABULARY)


class Tabled(nn.Module):
    """Rotary tables in buffers, of which the first places are read."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        table = torch.cat([angles(12, 8, torch.float32)] * 2, -1)
        self.register_buffer("cos", table.cos(), persistent=False)
        self.register_buffer("sin", table.sin(), persistent=False)
        self.tokens = Tokens(self.function, 4, 8)

    def function(self, net: Tokens, x: Tensor) -> Tensor:
        n = x.shape[1]
        return x * self.cos[:n] + rotated_halves(x) * self.sin[:n]

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.tokens(x)
        return found


def test_rotary_tables_in_buffers() -> None:
    check(Tabled(), (5 * 4,), 20, 0.5)


FORMS: dict[str, Callable[[Tokens, Tensor], Tensor]] = {
    "means": lambda net, x: x - x.mean(1, keepdim=True) + x.mean((1, 2)).view(-1, 1, 1),
    "sums": lambda net, x: torch.tanh(x.sum(-1).unsqueeze(-1) + x.transpose(1, 2).sum(2)[:, None]) * x,
    "powers": lambda net, x: x**3 / (1.5 + torch.exp(-x)) + 1.0 / (2.0 + x.square()),
    "roots": lambda net, x: torch.sqrt(x.square() + 0.5) - (x.square() + 0.3).rsqrt(),
    "repeated": lambda net, x: torch.cat([x, x[:, :1].repeat(1, 3, 1)], 1)
    + net.norm.weight.repeat(len(x), x.shape[1] + 3, 1),
    "truths counted": lambda net, x: torch.tanh(x) / (x > 0).sum(1, keepdim=True).add(1),
    "a masked mean": lambda net, x: torch.tanh(x) + (x * (x > 0)).sum(1, True) / (x > 0).float().sum(1, True).add(1.0),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_forms_of_its_parts(kind: str) -> None:
    check(Tokens(FORMS[kind], 4, 12), (5 * 4,), 21, 0.6)


def test_a_parameter_that_is_one_number() -> None:
    """As the strength of a residual branch (Bachlechner et al. 2021), and in a divisor."""

    class Scaled(Tokens):
        def __init__(self) -> None:
            super().__init__(Scaled.scaled, 4, 12)
            self.number = nn.Parameter(torch.tensor(0.7))

        def scaled(self: Any, x: Tensor) -> Tensor:
            found: Tensor = x + self.number * torch.tanh(x) - (self.number + x) / (1.5 + self.number.square())
            return found

    check(Scaled(), (5 * 4,), 21, 0.6)
    check_inference(Scaled(), (5 * 4,))


def test_lanes_without_an_example_stay_out() -> None:
    """They hold zeros, of which a reciprocal and a root's gradient are none."""
    net = nn.Sequential(nn.Linear(6, 8, bias=False), Reciprocal(), nn.Linear(8, 3))
    check(net, (6,), 5, 1.0)


class Reciprocal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(1.0 / x.square().add(0.0)) + x.square().sqrt()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, x: x.sum(0, keepdim=True) + x, "sum over the batch"),
        (lambda net, x: x.square() ** 1.5, "pow of other powers than 2 to 8"),
        (lambda net, x: torch.view_as_complex(x.unflatten(-1, (-1, 2))).abs().repeat(1, 1, 2), "view_as_complex"),
    ],
)  # fmt: skip
def test_what_stays_out_is_named(function: Callable[[Tokens, Tensor], Tensor], words: str) -> None:
    model = lf.from_module(Tokens(function, 4, 12), warn=False)
    with pytest.raises(UserError, match=rf"no rule for {words}.* \(line"):
        program_of(
            captured(model, (20,), training=True), *model.init(0), {}, batch=3, stored=Stored((20,), torch.float32),
            epilogue=Epilogue(),
        )  # fmt: skip
