"""Masks of attention on the sparse engine, of constants, buffers and data, against float64 networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import check, check_inference, kernels  # noqa: F401
from token_networks import Tokens, attended, joined
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.capture import TRACED_BATCH, captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.lowerings.masked_attention import is_causal
from lthfunc.sparse.program import Epilogue, Program, Stored, program_of
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

LENGTH, INS, WIDTH, HEADS = 7, 4, 12, 3
Function = Callable[[Tokens, Tensor], Tensor]


def by_hand(masked: Callable[[Tensor], Tensor]) -> Function:
    """Attention of products and a softmax, whose scores are masked by a function."""

    def function(net: Tokens, x: Tensor) -> Tensor:
        q, k, v = net.split(x)
        return joined(torch.softmax(masked(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])), -1) @ v)

    return function


def fused(mask: Callable[[int], Tensor]) -> Function:
    return lambda net, x: joined(attended(net.split(x), attn_mask=mask(x.shape[1]).to(net.up.weight.device)))


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def banded(length: int) -> Tensor:
    """Each place sees itself, its neighbours and the first; the last place sees nothing."""
    places = torch.arange(length)
    near = (places[:, None] - places[None, :]).abs() <= 1
    return (near | (places == 0)) & (places < length - 1)[:, None]


def slopes(length: int) -> Tensor:
    """Numbers that grow with the distance, other ones for each head (ALiBi), none for what comes later."""
    places = torch.arange(length)
    distance = (places[None, :] - places[:, None]).clamp(max=0)
    later = torch.full((length, length), -math.inf).triu(1)
    return distance * 2.0 ** -torch.arange(1, HEADS + 1)[:, None, None] + later


CONSTANT: dict[str, Function] = {
    "causal truths": fused(causal),
    "causal numbers": fused(lambda length: torch.full((length, length), -math.inf).triu(1)),
    "banded": fused(banded),
    "slopes": fused(slopes),
    "tril by hand": by_hand(lambda s: s.masked_fill(torch.tril(torch.ones(LENGTH, LENGTH)) == 0, -math.inf)),
    "triu by hand": by_hand(lambda s: s + torch.triu(torch.full((LENGTH, LENGTH), -math.inf), 1)),
    "where by hand": by_hand(lambda s: torch.where(causal(LENGTH), s, torch.finfo(torch.float32).min)),
    "arange by hand": by_hand(
        lambda s: s.masked_fill(torch.arange(LENGTH)[None, :] > torch.arange(LENGTH)[:, None] + 1, -1e9)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONSTANT)
def test_a_constant_mask(kind: str) -> None:
    net = Tokens(CONSTANT[kind], INS, WIDTH, HEADS)
    check(net, (LENGTH * INS,), 20, 0.5)
    if kind in ("banded", "arange by hand"):
        check_inference(net, (LENGTH * INS,))


@pytest.mark.parametrize("length", [TRACED_BATCH, 2 * TRACED_BATCH])
def test_a_length_may_be_the_traced_batchs(length: int) -> None:
    """Numbers of places are told from numbers of examples by a trace on another batch."""
    check(Tokens(fused(banded), INS, 6, 2), (length * INS,), 5, 0.5)


class Buffered(nn.Module):
    """Attention under a mask that is a buffer, of truths or of numbers, of which a part is read."""

    mask: Tensor

    def __init__(self, mask: Tensor, *, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent)
        self.tokens = Tokens(self.function, INS, WIDTH, HEADS)

    def function(self, net: Tokens, x: Tensor) -> Tensor:
        n = x.shape[1]
        mask = self.mask[:n, :n]
        return joined(attended(net.split(x), attn_mask=mask))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.tokens(x)
        return found


@pytest.mark.parametrize(
    "mask", [causal(9), banded(9), slopes(9)[1], causal(LENGTH)], ids=["causal", "band", "slopes", "whole"]
)
def test_a_mask_in_a_buffer(mask: Tensor) -> None:
    check(Buffered(mask), (LENGTH * INS,), 20, 0.5)


def program(model: lf.Model) -> Program:
    return program_of(
        captured(model, (LENGTH * INS,), training=True), *model.init(0), {}, batch=20,
        stored=Stored((LENGTH * INS,), torch.float32), epilogue=Epilogue(),
    )  # fmt: skip


def test_a_causal_mask_is_computed_as_one_and_a_programs_buffers_are_told() -> None:
    made = program(lf.from_module(Buffered(causal(9)), warn=False))
    assert OPCODES["attention"] in made.code.rows[:, 0]
    assert OPCODES["row_softmax"] not in made.code.rows[:, 0]
    assert made.fits({"mask": causal(9)})
    assert not made.fits({"mask": banded(9)})
    assert OPCODES["row_softmax"] in program(lf.from_module(Buffered(banded(9)), warn=False)).code.rows[:, 0]


def test_a_mask_for_each_head_is_no_causal_one() -> None:
    """Though it has as many numbers, and the same."""
    mask = causal(6)[:4]
    assert is_causal(mask, 4, 6)
    assert is_causal(mask[None, None], 4, 6)
    assert not is_causal(mask[:, None], 4, 6)


def test_networks_of_other_masks_in_turn() -> None:
    """One engine trains states whose buffers differ, as those of several seeds may."""
    model = lf.from_module(Buffered(banded(9)), warn=False)
    x, y = torch.randn(32, LENGTH * INS), torch.randint(0, 3, (32, LENGTH))
    data = lf.data.from_tensors("d", (x, y), (x[:8], y[:8]), val=8)
    start = lf.init(model)
    states = [start._replace(buffers={"mask": mask}) for mask in (banded(9), causal(9), banded(9))]
    ends = []
    for engine in ("eager", lf.sparse_engine):
        trainer = make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=8, engine=engine, loss=lf.next_token)
        ends.append([take_steps(trainer, state, seed=0, until=2)[0] for state in states])
    for eager, sparse in zip(*ends, strict=True):
        for name, leaf in eager.params.items():
            torch.testing.assert_close(sparse.params[name], leaf, rtol=1e-3, atol=1e-6)
    assert lf.same_bits(ends[1][0].params, ends[1][2].params)


class Padded(nn.Module):
    """Attention among tokens that are not padding, token 0, and the mean of those."""

    def __init__(self, form: Callable[[Padded, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.form, self.table = form, nn.Embedding(9, WIDTH)
        self.tokens = Tokens(lambda net, x: x, WIDTH, WIDTH, HEADS)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.tokens.out(self.form(self, self.tokens.up(self.table(tokens)), tokens))
        return found


def additive(tokens: Tensor) -> Tensor:
    return (1.0 - (tokens != 0).float())[:, None, None, :] * -1e4


DYNAMIC: dict[str, Callable[[Padded, Tensor, Tensor], Tensor]] = {
    "truths": lambda net, x, t: joined(attended(net.tokens.split(x), attn_mask=(t != 0)[:, None, None, :])),
    "expanded": lambda net, x, t: joined(
        attended(net.tokens.split(x), attn_mask=t.ne(0)[:, None, None].expand(-1, -1, t.shape[1], -1))
    ),
    "with causal": lambda net, x, t: joined(
        attended(net.tokens.split(x), attn_mask=(t != 0)[:, None, None, :] & causal(t.shape[1]))
    ),
    "numbers": lambda net, x, t: joined(attended(net.tokens.split(x), attn_mask=additive(t))),
    "by hand": lambda net, x, t: by_hand(lambda s: s.masked_fill((t == 0)[:, None, None], -1e9))(net.tokens, x),
    "where": lambda net, x, t: by_hand(lambda s: torch.where(~(t.eq(0) | t.gt(7))[:, None, None], s, -1e9))(
        net.tokens, x
    ),
    # Lanes without an example hold token 0 alone, so that all of their scores are masked.
    "infinite": lambda net, x, t: by_hand(lambda s: s.masked_fill((t == 0)[:, None, None], -math.inf))(net.tokens, x),
    "full_like": lambda net, x, t: by_hand(
        lambda s: torch.where((t != 0)[:, None, None], s, torch.full_like(s, -math.inf))
    )(net.tokens, x),
    "zeroed": lambda net, x, t: x * (t != 0).unsqueeze(-1) + x.masked_fill(t.unsqueeze(-1) <= 1, 0.5),
    "either": lambda net, x, t: torch.where((t >= 3)[..., None], x, torch.tanh(x)),
    "of two numbers": lambda net, x, t: torch.where((t >= 3)[..., None], 0.5, -1.5) * x,
    "shorter": lambda net, x, t: joined(
        attended(net.tokens.split(x), attn_mask=(torch.arange(t.shape[1]) < t[:, :1] + 2)[:, None, None])
    ),
    "multihead": lambda net, x, t: net.attention(x, x, x, key_padding_mask=t == 0, need_weights=False)[0],
    "with weights": lambda net, x, t: net.attention(x, x, x, attn_mask=~causal(t.shape[1]))[0],
}  # fmt: skip


#: What forward makes, of as many numbers as tokens, and writes a mask into.
MADE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "zeros": lambda x, t: torch.zeros(t.shape).masked_fill(t == 0, -math.inf),
    "ones": lambda x, t: (1.0 - torch.ones(t.shape[0], t.shape[1]).masked_fill(t == 0, 0.0)) * -1e4,
    "full": lambda x, t: torch.full(t.shape, -math.inf).masked_fill(t != 0, 0.0),
    "new_zeros": lambda x, t: x.new_zeros(t.shape).masked_fill_(t == 0, -math.inf),
    "new_ones": lambda x, t: torch.where(t == 0, -1e4, x.new_ones(t.shape)),
    "new_full": lambda x, t: torch.where(t == 0, x.new_full(t.shape, -1e4), 0.0),
}


@pytest.mark.parametrize("length", [LENGTH, TRACED_BATCH])
@pytest.mark.parametrize("kind", MADE)
def test_a_mask_is_written_into_what_forward_makes(kind: str, length: int) -> None:
    """Such tensors, which follow the batch, had no rule; a length is no number of examples."""

    def form(net: Padded, x: Tensor, t: Tensor) -> Tensor:
        return joined(attended(net.tokens.split(x), attn_mask=MADE[kind](x, t)[:, None, None, :].to(x.dtype)))

    check(Padded(form), (length,), 20, 0.5, tokens=9)
    check_inference(Padded(form), (length,), tokens=9)


@pytest.mark.parametrize("kind", DYNAMIC)
def test_a_mask_from_the_data(kind: str) -> None:
    for density in (0.3, 0.5):  # by lists, and on some processors also densely
        check(Padded(DYNAMIC[kind]), (LENGTH,), 20, density, tokens=9)


def test_shared_keys_and_dropout_under_a_mask() -> None:
    def shared(net: Tokens, x: Tensor) -> Tensor:
        q, k, v = net.split(x)
        return joined(attended((q, k[:, :1], v[:, :1]), attn_mask=banded(LENGTH), enable_gqa=True))

    check(Tokens(shared, INS, WIDTH, HEADS), (LENGTH * INS,), 20, 0.5)
    dropping = Tokens(
        lambda net, x: joined(attended(net.split(x), attn_mask=banded(LENGTH), dropout_p=0.5)), INS, WIDTH, HEADS
    )
    made = program(lf.from_module(dropping, warn=False))
    assert OPCODES["dropout"] in made.code.rows[:, 0]


def test_a_value_that_a_comparison_reads_keeps_its_gradient() -> None:
    """ReLU's zeros are in the gradient though one of the value's readers has none."""

    def function(net: Tokens, x: Tensor) -> Tensor:
        h = torch.relu(net.norm(x))
        return h * 2 + F.gelu(x).masked_fill(h > 0.5, 0.0)

    check(Tokens(function, INS, WIDTH), (LENGTH * INS,), 20, 0.5)


def test_tensors_made_in_forward_are_constants() -> None:
    def function(net: Tokens, x: Tensor) -> Tensor:
        table = torch.tensor([0.5, 2.0] * (WIDTH // 2)).cumsum(0)
        table[1:3] = -1.0
        return torch.tanh(x) * table + x * torch.tensor(0.25)

    check(Tokens(function, INS, WIDTH), (LENGTH * INS,), 20, 0.5)


def test_what_stays_out_is_named() -> None:
    def compared(net: Tokens, x: Tensor) -> Tensor:
        return x.masked_fill(x > net.norm(x), 0.0)

    model = lf.from_module(Tokens(compared, INS, WIDTH), warn=False)
    with pytest.raises(UserError, match=r"no rule for gt of two values that are no whole numbers in Tokens \(line"):
        program(model)
