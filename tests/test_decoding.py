"""Sequences token by token: logits and drawn tokens against float64 networks that read all tokens anew."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import kernels, random_masks  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse.decoding import DecodingProgram
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import COLUMNS, HEAD, OPCODES, WHOLE
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

TOLERANCE = 1e-5


def made(
    net: nn.Module, length: int, density: float, seed: int = 0
) -> tuple[DecodingProgram, Callable[[Tensor], Tensor]]:
    """(the program of a random ticket, its network in float64: tokens (n,) to logits (n, vocabulary))."""
    model = lf.from_module(net, tokens=True, init=lf.as_built, warn=False)
    params, buffers = model.init(seed)
    masks = random_masks(model, density, seed)
    ticket = lf.Ticket({name: leaf + 0.01 for name, leaf in params.items()}, buffers, masks)
    params, buffers = (
        {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in tree.items()}
        for tree in (lf.apply_masks(ticket.params, masks), buffers)
    )
    return lf.decoding_program(model, ticket, length), lambda x: apply_evaluating(model, params, buffers, x[None])[0]


def check(net: nn.Module, length: int, vocabulary: int, density: float, seed: int = 0) -> DecodingProgram:
    program, network = made(net, length, density, seed)
    tokens = torch.randint(0, vocabulary, (length,), generator=torch.Generator().manual_seed(seed))
    for count in (length, 1 + length // 2):  # the second time, where other keys and values lie
        expected, found = network(tokens[-count:]), program(tokens[-count:])
        assert found.shape == (count, vocabulary)
        assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
    return program


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 4),
    each=st.integers(1, 19),
    length=st.integers(2, 90),
    vocabulary=st.integers(2, 70),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    tied=st.booleans(),
)
def test_logits_of_transformers(
    layers: int, heads: int, each: int, length: int, vocabulary: int, density: float, tied: bool
) -> None:
    torch.manual_seed(length)
    net = CharTransformer((length,), vocabulary, layers=layers, heads=heads, width=max(3, each) * heads, tied=tied)
    program = check(net, length, vocabulary, density, length)
    assert torch.ops.lthfunc.runs_single(program._number)


class Gated(nn.Module):
    """Grouped queries with rotated halves, RMS normalisation, a gated layer, and a table of places."""

    def __init__(self, length: int, width: int = 24, vocabulary: int = 11, *, masked: bool = False) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.gate, self.up, self.down = nn.Linear(width, 40), nn.Linear(width, 40), nn.Linear(40, width)
        self.head = nn.Linear(width, vocabulary)
        self.masked = masked
        angles = torch.outer(torch.arange(length), 0.3 ** torch.arange(3.0))
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", torch.cat([angles, angles], 1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], 1).sin())

    def turned(self, x: Tensor) -> Tensor:
        steps = x.shape[-2]
        return x * self.cos[:steps] + torch.cat([-x[..., 3:], x[..., :3]], -1) * self.sin[:steps]

    def forward(self, x: Tensor) -> Tensor:
        n, steps = x.shape
        x = self.tokens(x) + self.places(torch.arange(steps))
        first = self.norms[0](x)
        q = self.q(first).view(n, steps, 4, 6).transpose(1, 2)
        k, v = (each.view(n, steps, 2, 6).transpose(1, 2) for each in self.kv(first).chunk(2, -1))
        mask = torch.full((steps, steps), -torch.inf, dtype=x.dtype).triu(1) if self.masked else None
        mixed = F.scaled_dot_product_attention(
            self.turned(q), self.turned(k), v, attn_mask=mask, is_causal=mask is None, scale=0.3, enable_gqa=True
        )
        x = x + mixed.transpose(1, 2).flatten(2)
        second = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(second)) * self.up(second))
        found: Tensor = self.head(self.norms[2](x))
        return found


@pytest.mark.parametrize("masked", [False, True])
def test_logits_of_networks_of_ones_own(masked: bool) -> None:
    """What depends on the place alone is a table, whatever it is computed from."""
    torch.manual_seed(0)
    program = check(Gated(21, masked=masked), 21, 11, 0.5)
    assert torch.ops.lthfunc.runs_single(program._number)


def test_operations_without_a_kernel_for_one_example_take_a_tile() -> None:
    net = nn.Sequential(CharTransformer((9,), 7, layers=1, heads=2, width=8), nn.LogSoftmax(-1))
    program = check(net, 9, 7, 0.5)
    assert not torch.ops.lthfunc.runs_single(program._number)


class Tokens(nn.Module):
    """A function of embedded tokens, and logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.tokens, self.head = function, nn.Embedding(7, 6), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.function(self.tokens(x)))
        return found


def attended(x: Tensor, **given: object) -> Tensor:
    return F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], **given)[:, 0]  # type: ignore[arg-type]


def test_functions_of_single_numbers_are_those_of_a_token() -> None:
    def function(x: Tensor) -> Tensor:
        x = F.softplus(x.clamp(-0.5, 1)) + F.selu(x).clamp_min(-1) - F.softsign(x)
        return attended(torch.maximum(F.mish(x), 0.3 * x.abs()), is_causal=True)

    check(Tokens(function), 9, 7, 0.8)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (attended, r"scaled_dot_product_attention that is not causal in Tokens \(line \d+ of .*test_decoding.py"),
        (
            lambda x: attended(x, attn_mask=torch.ones(x.shape[1], x.shape[1]).tril(1).bool()),
            "scaled_dot_product_attention that is not causal",
        ),
        (lambda x: attended(x.mT, is_causal=True).mT, "over another dimension than that of tokens"),
        (lambda x: x + x.cumsum(1), r"has no rule for cumsum in Tokens \(line \d+ of .*test_decoding.py"),
        (lambda x: x + x.flip(1), "has no rule for flip"),
        (lambda x: x + x[:, -1:], "other tokens than|by token|other things"),
        (lambda x: x + x.unbind(1)[0][:, None], "unbind of other tokens than the one at its place"),
        (lambda x: x * x.softmax(1), "has no rule for softmax over a sequence's tokens"),
        (lambda x: F.layer_norm(x.mT, x.shape[1:2]).mT, "layer_norm over a sequence's tokens"),
        (lambda x: x + x.mT.reshape(x.shape), "by token"),
        (lambda x: x if x.shape[1] > 1 else x + 1, "does other things with one token than with 9"),
        (lambda x: x * x.shape[1], "by token"),
    ],
)
def test_networks_that_mix_tokens_otherwise_are_refused(function: Callable[[Tensor], Tensor], words: str) -> None:
    model = lf.from_module(Tokens(function), tokens=True)
    with pytest.raises(lf.UserError, match=words):
        lf.decoding_program(model, lf.init(model), 9)


def test_what_is_no_sequence_for_a_program_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    model = lf.models.char_transformer((16,), 7, width=8, layers=1, heads=1)
    given: Any = [3, 1]
    with pytest.raises(lf.UserError, match=r"tokens: invalid value 'a list of 2 \(int\)' \(expected a tensor"):
        lf.decoding_program(model, lf.init(model), 16)(given)
    with pytest.raises(lf.UserError, match="cannot be traced on sequences of 17 tokens"):
        lf.decoding_program(model, lf.init(model), 17)
    assert not [each for each in caplog.records if each.levelno >= logging.ERROR]  # PyTorch would print a traceback


def averaging(rows: Tensor) -> Tensor:
    """The same instructions, and one that averages constants, for which a sequence has no memory."""
    more = torch.zeros(1, rows.shape[1], dtype=torch.int64)
    more[0, : HEAD + 4] = torch.tensor([OPCODES["average_constants"], WHOLE, 1, 1, 0, 1, 0, 0])
    return torch.cat([rows, more])


def forgetting(rows: Tensor) -> Tensor:
    """The same instructions, of which attention reads no key at the first place."""
    columns = COLUMNS["attention"]
    rows[rows[:, 0] == OPCODES["attention"], HEAD + columns.index("keys")] -= 1
    return rows


@pytest.mark.parametrize(
    ("changed", "batch", "words"),
    [
        (lambda rows: rows, 0, "takes a program for one example"),
        (averaging, 1, "a program for training"),
        (forgetting, 1, "moves too far"),
    ],
    ids=["no example", "averages", "no key"],
)
def test_programs_that_would_leave_their_memory_are_refused(
    changed: Callable[[Tensor], Tensor], batch: int, words: str
) -> None:
    program, _ = made(CharTransformer((5,), 7, layers=1, heads=2, width=8), 5, 0.5)
    code, tokens = program._code, torch.tensor([1])
    rows, constants = changed(code.rows.clone()), len(code.constants)
    number = torch.ops.lthfunc.make_program(rows, code.lists, code.vectors, 0, code.values, 0, constants, batch)
    with pytest.raises(ValueError, match=f"lthfunc: {words}"):
        torch.ops.lthfunc.decode(number, program._moving, program._states, 5, *program._memory, tokens)
    if changed is averaging:
        with pytest.raises(ValueError, match=f"lthfunc: {words}"):
            torch.ops.lthfunc.infer(number, *program._memory, tokens[None], False)
    torch.ops.lthfunc.free_program(number)
