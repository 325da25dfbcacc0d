"""Masks of padding where lanes are tokens, against float64 networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import TOLERANCE, kernels  # noqa: F401
from test_token_lanes_gradients import check
from token_lanes import batch_of, gradients_on, network, program_for, ticket
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES, column_of
from lthfunc.sparse.program import Epilogue
from lthfunc.sparse.token_lanes import lanes_program, saves_work, training_on_lanes
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_training

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

WORDS = 7
LEAST = torch.finfo(torch.float32).min
#: A network, embedded tokens and the tokens -> what attention gives.
Form = Callable[["Padded", Tensor, Tensor], Tensor]


class Padded(nn.Module):
    """Attention of some form among tokens that are not padding, token 0."""

    def __init__(self, form: Form, heads: int = 2, each: int = 6, shared: int = 1, words: int = WORDS) -> None:
        super().__init__()
        width = heads * each
        self.form, self.heads, self.shared = form, heads, shared
        self.table, self.head = nn.Embedding(words, width), nn.Linear(width, words)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * each * heads // shared)
        self.multihead = nn.MultiheadAttention(width, heads, batch_first=True)
        self.slopes: Tensor
        self.register_buffer("slopes", torch.linspace(0.5, 1.5, heads)[:, None, None])

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        found: Tensor = self.head(x + self.form(self, x, tokens))
        return found

    def attended(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (each.unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(1, 2)
                   for each in (self.q(x), *self.kv(x).chunk(2, -1)))  # fmt: skip
        mask = mask if mask.dtype == torch.bool else mask.to(x.dtype)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=self.shared > 1)
        return mixed.transpose(1, 2).flatten(2)


def causal(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def later(length: int) -> Tensor:
    return torch.full((length, length), -math.inf).triu(1)


def read(tokens: Tensor) -> Tensor:
    """Which keys are, (n, 1, 1, length)."""
    return (tokens != 0)[:, None, None, :]


def scores(tokens: Tensor) -> Tensor:
    """Numbers that are added, other ones for each token."""
    return (0.3 * tokens.float() - 1.0)[:, None, None, :]


def of(mask: Callable[[Padded, Tensor], Tensor]) -> Form:
    return lambda net, x, tokens: net.attended(x, mask(net, tokens))


FORMS: dict[str, Form] = {
    "truths": of(lambda net, t: read(t)),
    "truths, causal": of(lambda net, t: read(t) & causal(t.shape[1])),
    "one for each query": of(lambda net, t: (t != 0)[:, None].repeat(1, t.shape[1], 1)[:, None]),
    "expanded": of(lambda net, t: read(t).expand(-1, net.heads, t.shape[1], -1)),
    "of queries, too": of(lambda net, t: read(t) & read(t).mT),
    "neither is padding, causal": of(
        lambda net, t: ~((t == 0)[:, None, None] | ~causal(t.shape[1]) | (t > 5)[:, None, :, None])
    ),
    "numbers": of(lambda net, t: scores(t)),
    "numbers, causal": of(lambda net, t: scores(t) + later(t.shape[1])),
    "numbers of heads": of(lambda net, t: scores(t) * net.slopes),
    "filled": of(lambda net, t: scores(t).masked_fill(~read(t), -math.inf)),
    "filled, causal": of(lambda net, t: later(t.shape[1]).masked_fill(~read(t), -math.inf)),
    "chosen": of(lambda net, t: torch.where(read(t), 0.0, -math.inf)),
    "chosen of pairs": of(lambda net, t: torch.where(read(t) & causal(t.shape[1]), scores(t), -math.inf)),
    "chosen otherwise": of(lambda net, t: torch.where(~read(t) | ~causal(t.shape[1]), -math.inf, 0.0)),
    "least numbers": of(lambda net, t: (1.0 - read(t).float()) * LEAST),
    "multihead": lambda net, x, t: net.multihead(x, x, x, key_padding_mask=t == 0, need_weights=False)[0],
    "multihead, numbers": lambda net, x, t: net.multihead(
        x, x, x, key_padding_mask=scores(t).flatten(1).to(x.dtype), need_weights=False
    )[0],
    "multihead, causal": lambda net, x, t: net.multihead(
        x, x, x, attn_mask=~causal(t.shape[1]), key_padding_mask=t == 0, need_weights=False
    )[0],
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMS)
def test_gradients_under_a_mask(kind: str) -> None:
    """Of sequences of parts of tiles, in which some tokens are padding; the first queries of some read nothing."""
    torch.manual_seed(0)
    opcodes = check(Padded(FORMS[kind]), 5, 21, WORDS, 0.6)
    assert OPCODES["token_attention_gradient"] in opcodes
    assert OPCODES["row_softmax"] not in opcodes


@pytest.mark.parametrize("kind", FORMS)
def test_inference_under_a_mask(kind: str) -> None:
    torch.manual_seed(1)
    model = network(Padded(FORMS[kind]))
    state, (x, _) = ticket(model, 0.6), batch_of(3, 37, WORDS)
    x[0, :-1] = 0
    run = lf.sparse_program(model, state)
    params, buffers = ({name: leaf.double() for name, leaf in tree.items()} for tree in (state.params, state.buffers))
    # In training mode, since PyTorch's multi-head attention is NaN of queries without keys in the other.
    expected, _ = apply_training(model, params, buffers, x)
    torch.testing.assert_close(run(x).double(), expected, rtol=1e-5, atol=1e-5)
    (made,) = run._lanes.values()
    assert OPCODES["token_attention"] in made.workspace.program.code.rows[:, 0].tolist()


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(list(FORMS)),
    sizes=st.tuples(st.integers(1, 14), st.integers(2, 70)).filter(lambda each: saves_work(*each, training=True)),
    shared=st.integers(1, 2),
    groups=st.integers(1, 3),
    each=st.integers(1, 19),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    vocabulary=st.sampled_from([2, WORDS]),
)
def test_gradients_of_any_sizes(
    kind: str, sizes: tuple[int, int], shared: int, groups: int, each: int, density: float, vocabulary: int
) -> None:
    """Where every second token is padding, too."""
    torch.manual_seed(sizes[1])
    check(Padded(FORMS[kind], shared * groups, each, shared), *sizes, vocabulary, density)


@pytest.mark.parametrize("kind", ["truths, causal", "of queries, too", "numbers of heads"])
def test_any_number_of_threads_gives_the_same_bits(kind: str) -> None:
    model = network(Padded(FORMS[kind], 4, 20))
    state, batch = ticket(model, 0.3), batch_of(7, 70, WORDS)
    program = program_for(model, state, 7, 70)
    assert torch.equal(*(gradients_on(threads, state, program, batch) for threads in (1, 2)))


def test_what_reads_no_key_gives_nothing_and_has_no_gradient() -> None:
    """Of a sequence of padding alone attention is zero, so that weights before it have the gradient of the others."""
    torch.manual_seed(0)
    model = network(Padded(FORMS["truths"]))
    state, (x, y) = ticket(model, 1.0), batch_of(3, 20, WORDS)
    x[1] = 0
    found = []
    for batch, targets in ((x, y), (x[[0, 2]], y[[0, 2]])):
        workspace = Workspace(program_for(model, state, len(batch), 20), state.params, state.buffers)
        workspace.run(batch[None], targets[None])
        counted = int((targets != -100).sum())
        found.append({name: leaf * counted for name, leaf in workspace.dense(workspace.gradients).items()})
    for name in ("q.weight", "kv.weight", "kv.bias"):
        assert found[0][name].isfinite().all()
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-4, atol=1e-6, msg=name)


REFUSED: dict[str, Form] = {
    "learned": of(lambda net, t: net.head(net.table(t))[..., 0][:, None, None, :]),
    "of a query's own keys": of(lambda net, t: (t[:, None, :, None] == t[:, None, None, :])),
    "of one or the other": of(lambda net, t: read(t) | causal(t.shape[1])),
    "of a product": of(lambda net, t: scores(t) * later(t.shape[1]).clamp(min=-1)),
    "banded": of(lambda net, t: read(t) & causal(t.shape[1]).triu(-3)),
    "finite": of(lambda net, t: torch.where(read(t) & causal(t.shape[1]), 0.0, -1e4)),
    "broadcast before it is shaped": of(
        lambda net, t: (scores(t) + later(t.shape[1]).expand(net.heads, -1, -1)).flatten(0, 1).view(
            -1, net.heads, t.shape[1], t.shape[1]
        )
    ),
    "of other tokens": of(lambda net, t: t.cumsum(1).ne(0)[:, None, None, :]),
    "of which a part is read elsewhere": lambda net, x, t: x * (read(t) & causal(t.shape[1])).select(-1, 0).mT.float(),
    "read elsewhere": lambda net, x, t: x + (read(t) & causal(t.shape[1])).float().sum(-1).mT,
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_other_masks_keep_lanes_of_examples(kind: str) -> None:
    model = network(Padded(REFUSED[kind]))
    state = lf.init(model)
    assert training_on_lanes(model, state, 3, 20, Epilogue()) is None
    assert lanes_program(model, state.params, state.buffers, state.masks, batch_of(3, 20, WORDS)[0]) is None


@pytest.mark.parametrize("column", ["of_keys", "of_queries", "keep_scale"])
def test_masks_outside_memory_are_refused(column: str) -> None:
    model = network(Padded(FORMS["of queries, too"]))
    code = program_for(model, lf.init(model), 3, 20).code
    for name in ("token_attention", "token_attention_gradient"):
        rows = code.rows.clone()
        rows[rows[:, 0] == OPCODES[name], column_of(name, column)] = 2**31 - 1
        with pytest.raises(ValueError, match=rf"lthfunc: instruction \d+ \({name}\): "):
            torch.ops.lthfunc.make_program(
                rows, code.lists, code.vectors, code.local, code.values, code.trained, len(code.constants), code.batch
            )


@pytest.mark.parametrize("padding", range(4))
def test_finite_numbers_in_the_place_of_scores_are_no_masks(padding: int) -> None:
    """They are so in queries without keys alone, of which sequences that a program is tried on may have none."""

    def mask(net: Padded, tokens: Tensor) -> Tensor:
        pairs = (tokens != padding)[:, None, None, :] & causal(tokens.shape[1])
        return torch.zeros(pairs.shape[-2:]).masked_fill(~pairs, -1e4)

    model = network(Padded(of(mask)))
    assert training_on_lanes(model, lf.init(model), 3, 20, Epilogue()) is None
