"""Few sequences on lanes that are tokens, against float64 networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sparse_programs import kernels, random_masks  # noqa: F401
from test_decoding import TOLERANCE, Gated, Tokens
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.token_lanes import lanes_program, saves_work
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def tokens_of(n: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (n, length), generator=torch.Generator().manual_seed(length))


def check(net: nn.Module, n: int, length: int, vocabulary: int, density: float) -> None:
    """`sparse_program` takes lanes of tokens, and gives what the network gives in float64; also a second time."""
    model = lf.from_module(net, tokens=True, init=lf.as_built, warn=False)
    params, buffers = model.init(0)
    masks = random_masks(model, density, 0)
    ticket = lf.Ticket({name: leaf + 0.01 for name, leaf in params.items()}, buffers, masks)
    run = lf.sparse_program(model, ticket)
    params, buffers = (
        {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in tree.items()}
        for tree in (lf.apply_masks(ticket.params, masks), buffers)
    )
    for first in (0, 1):
        x = tokens_of(n + first, length, vocabulary)[first:]
        expected, found = apply_evaluating(model, params, buffers, x), run(x)
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        assert float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())
    (made,) = run._lanes.values()
    assert made is not None
    opcodes = made.workspace.program.code.rows[:, 0].tolist()
    assert OPCODES["token_attention"] in opcodes
    assert OPCODES["attention"] not in opcodes


@pytest.mark.parametrize(
    ("n", "length", "layers", "heads", "each", "density"),
    [(2, 48, 2, 2, 16, 0.3), (5, 21, 1, 3, 5, 1.0), (8, 17, 1, 1, 23, 0.1), (3, 7, 1, 2, 4, 0.0)],
)
def test_transformers(n: int, length: int, layers: int, heads: int, each: int, density: float) -> None:
    """Sequences of whole tiles and of parts of them, features of whole registers and of parts of them."""
    torch.manual_seed(length)
    net = CharTransformer((length,), 13, layers=layers, heads=heads, width=heads * each, tied=n == 5)
    check(net, n, length, 13, density)


@pytest.mark.parametrize("masked", [False, True])
def test_networks_of_ones_own(masked: bool) -> None:
    """Grouped queries, rotated by a table of places."""
    torch.manual_seed(0)
    check(Gated(35, masked=masked), 4, 35, 11, 0.5)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    model = lf.models.char_transformer((40,), 13, layers=2, width=24)
    state, x, before = lf.prune(density=0.3)(lf.init(model)), tokens_of(6, 40, 13), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(lf.sparse_program(model, state)(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "function",
    [lambda x: x + x.cumsum(1), lambda x: x * x.shape[1], lambda x: x + x.flip(1), lambda x: x + x.mean(1)[:, None]],
)
def test_networks_that_mix_tokens_otherwise_keep_lanes_of_examples(function: Callable[[Tensor], Tensor]) -> None:
    model = lf.from_module(Tokens(function), tokens=True, warn=False)
    state, x = lf.init(model), tokens_of(3, 20, 7)
    assert lanes_program(model, state.params, state.buffers, state.masks, x) is None


def test_what_ran_before_still_runs() -> None:
    model = lf.from_module(Tokens(lambda x: x + x.mean(1)[:, None]), tokens=True, warn=False)
    state, x = lf.prune(density=0.5)(lf.init(model)), tokens_of(3, 20, 7)
    expected = apply_evaluating(model, state.params, state.buffers, x)
    torch.testing.assert_close(lf.sparse_program(model, state)(x), expected, rtol=1e-5, atol=1e-5)


def test_unknown_tokens_are_named() -> None:
    model = lf.models.char_transformer((20,), 13, layers=1, width=8)
    with pytest.raises(IndexError, match="token 13 is none of 13"):
        lf.sparse_program(model, lf.init(model))(torch.full((3, 20), 13))


@pytest.mark.parametrize(
    ("sequences", "length", "found", "training"),
    [
        (1, 64, True, True),
        (1, 1, False, False),
        (2, 64, True, True),
        (14, 64, True, True),
        (15, 64, True, False),
        (16, 64, False, False),
        (8, 20, True, True),
        (9, 20, True, False),
        (3, 4, True, True),
        (4, 4, False, False),
        (2, 17, True, True),
    ],
)
def test_the_choice_is_by_sizes(sequences: int, length: int, found: bool, training: bool) -> None:
    assert saves_work(sequences, length) is found
    assert saves_work(sequences, length, training=True) is training


def test_no_sequences_have_outputs_of_their_shape() -> None:
    model = lf.from_module(CharTransformer((24,), 13, layers=1, heads=1, width=16), tokens=True, warn=False)
    run = lf.sparse_program(model, lf.init(model))
    assert run(tokens_of(0, 24, 13)).shape == apply_evaluating(model, *model.init(0), tokens_of(0, 24, 13)).shape
