"""The sparse engine on tokens: layers over the last dimension, embeddings and attention, against float64 networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import check, check_inference, computed_densely, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer, ViT
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Tokens(nn.Module):
    """(n, length · ins) numbers as tokens, a function of them, and three classes for each token."""

    def __init__(self, function: Callable[[Tokens, Tensor], Tensor], ins: int, width: int, heads: int = 1) -> None:
        super().__init__()
        self.function, self.ins, self.heads = function, ins, heads
        self.up, self.out = nn.Linear(ins, width), nn.Linear(width, 3)
        self.norm, self.root, self.qkv = nn.LayerNorm(width), nn.RMSNorm(width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.function(self, self.up(x.unflatten(1, (-1, self.ins)))))
        return found

    def split(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, (n, heads, length, features) each."""
        return [each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1)]


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def attended(operands: Sequence[Tensor], **settings: Any) -> Tensor:
    q, k, v = operands
    return F.scaled_dot_product_attention(q, k, v, **settings)


shapes = {
    "length": st.integers(1, 19),
    "ins": st.integers(1, 40),
    "width": st.integers(1, 35),
    "batch": st.sampled_from([1, 5, 16, 37]),
    "density": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
}


@settings(max_examples=6, deadline=None, derandomize=True)
@given(**shapes)
def test_linear_layers_and_norms_take_each_token(length: int, ins: int, width: int, batch: int, density: float) -> None:
    check(Tokens(lambda net, x: x + net.root(F.gelu(x)), ins, width), (length * ins,), batch, density)
    if width > 2:  # two numbers around their mean are 1 and -1: gradients that rounding is all of
        check(Tokens(lambda net, x: torch.relu(net.norm(x)), ins, width), (length * ins,), batch, density)


def test_long_rows_of_tokens_are_taken_in_pieces() -> None:
    """More tokens and features than a first-level cache holds, also where layers are computed densely."""
    net = Tokens(lambda net, x: x + F.gelu(net.norm(x), approximate="tanh"), 160, 96)
    check(net, (32 * 160,), 20, 0.1)
    check_inference(net, (32 * 160,), density=0.1)
    with computed_densely():
        check(net, (32 * 160,), 20, 0.7)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    length=st.integers(1, 19),
    features=st.integers(1, 9),
    heads=st.integers(1, 3),
    batch=st.sampled_from([1, 5, 37]),
    causal=st.booleans(),
)
def test_attention(length: int, features: int, heads: int, batch: int, causal: bool) -> None:
    def function(net: Tokens, x: Tensor) -> Tensor:
        return joined(attended(net.split(x), is_causal=causal))

    check(Tokens(function, 4, heads * features, heads), (length * 4,), batch, 0.5)


class Queries(Tokens):
    """As many queries of its own as an example has tokens, or fewer."""

    def __init__(self, count: int) -> None:
        super().__init__(lambda net, x: x, 4, 12, 2)
        self.queries = nn.Parameter(torch.randn(count, 12))

    def forward(self, x: Tensor) -> Tensor:
        _, keys, values = self.split(self.up(x.unflatten(1, (-1, 4))))
        queries = self.queries.expand(len(x), -1, -1).unflatten(-1, (2, 6)).transpose(1, 2)
        found: Tensor = self.out(joined(F.scaled_dot_product_attention(queries, keys, values)))
        return found


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: joined(attended([x.unflatten(-1, (2, 6)).transpose(1, 2)] * 3)),
        lambda net, x: F.scaled_dot_product_attention(x, x[:, :4], x[:, 1:5]),
        lambda net, x: joined(attended(net.split(torch.relu(x)), scale=2.0)),
        lambda net, x: joined(attended(
            [each[:, :1] if number else each for number, each in enumerate(net.split(x))],
            enable_gqa=True)),
        lambda net, x: joined(attended([each * 2 for each in net.split(x)], is_causal=True)),
    ],
    ids=["of one operand three times", "of parts", "scaled", "of shared keys and values", "of copies"],
)  # fmt: skip
def test_operands_of_attention(function: Callable[[Tokens, Tensor], Tensor]) -> None:
    class Once(Tokens):
        """As Tokens, but its matrix for queries, keys and values is read once."""

        def split(self, x: Tensor) -> list[Tensor]:
            if not hasattr(self, "kept"):
                self.kept = super().split(x)
            return self.kept

        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            self.__dict__.pop("kept", None)
            return found

    check(Once(function, 4, 12, 2), (7 * 4,), 20)


def test_queries_of_their_own() -> None:
    for count in (1, 9):
        check(Queries(count), (5 * 4,), 20)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: x.view(-1, 12).view(len(x), -1, 12),
        lambda net, x: x.transpose(0, 1).contiguous().transpose(1, 0),
        lambda net, x: torch.cat([x[:, ::2], x[:, 1:2], x], 1),
        lambda net, x: torch.cat([x[..., 3:], x[..., :3]], -1),
        lambda net, x: x[:, 1] + x.unbind(1)[2],
        lambda net, x: x.reshape(len(x), 3, 2, 12).permute(0, 2, 1, 3).flatten(1, 2).squeeze().unsqueeze(1).squeeze(1),
        lambda net, x: x.split([1, 5], 1)[1] * x[:, :1],
        lambda net, x: (x.flatten(1) * x.transpose(1, 2).flatten(1)[:, 3:4]).view(len(x), 6, 12),
        lambda net, x: x + x.movedim(1, 0)[0].unsqueeze(1),
        lambda net, x: (x - 1.5) * x.transpose(1, 2).mT + net.norm.bias,
        lambda net, x: x.flatten(1).unflatten(1, (6, 12)) * net.root.weight,
    ],
)
def test_dimensions_are_strides(function: Callable[[Tokens, Tensor], Tensor]) -> None:
    check(Tokens(function, 4, 12), (6 * 4,), 20)


class Classified(nn.Module):
    """A class token before six tokens of an image, a table of places, and three classes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.conv, self.out = function, nn.Conv2d(2, 5, 2, 2), nn.Linear(5, 3)
        self.first, self.places = nn.Parameter(torch.randn(1, 1, 5)), nn.Parameter(torch.randn(1, 7, 5))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        found: Tensor = self.out(self.function(torch.cat([self.first.expand(len(x), -1, -1), tokens], 1) + self.places))
        return found


@pytest.mark.parametrize("function", [lambda x: x[:, 0], lambda x: torch.tanh(x)[:, -1], lambda x: x[:, 2:5]])
def test_images_become_tokens(function: Callable[[Tensor], Tensor]) -> None:
    check(Classified(function), (2, 4, 6), 20)
    check_inference(Classified(function), (2, 4, 6))


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    vocabulary=st.integers(3, 40),
    width=st.integers(1, 40),
    length=st.integers(1, 9),
    batch=st.sampled_from([1, 16, 37]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    padding=st.sampled_from([None, 2]),
)
def test_embeddings(vocabulary: int, width: int, length: int, batch: int, density: float, padding: int | None) -> None:
    net = nn.Sequential(nn.Embedding(vocabulary, width, padding_idx=padding), nn.Linear(width, 3))
    check(net, (length,), batch, density, tokens=vocabulary)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(Exception, match=r"token \d is none of 5"):
        check(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)), (3,), tokens=10, seed=1)


def test_transformers() -> None:
    """The catalogue's, small: gradients in training, and outputs in evaluation for many examples and for one."""
    for length in (8, 13):
        net = CharTransformer((length,), 7, layers=2, heads=2, width=24)
        check(net, (length,), 37, tokens=7)
        check_inference(net, (length,), 37, tokens=7)
    tied = CharTransformer((9,), 7, layers=1, heads=2, width=24, tied=True)
    check(tied, (9,), 20, tokens=7)
    check_inference(tied, (9,), 20, tokens=7)
    vit = ViT((3, 8, 8), 3, layers=2, heads=3, width=12)
    check(vit, (3, 8, 8), 20)
    check_inference(vit, (3, 8, 8), 20)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda net, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5), "with dropout of its weights"),
        (
            lambda net, x: x.view(-1, 8).view(len(x), -1, 12),
            "view across dimensions that don't lie one behind the other",
        ),
        (lambda net, x: F.layer_norm(x, (6, 12)), "layer_norm over more than the last dimension"),
    ],
)
def test_forms_without_a_lowering_are_named(function: Callable[[Tokens, Tensor], Tensor], words: str) -> None:
    with pytest.raises(lf.UserError, match=words):
        check(Tokens(function, 4, 12), (6 * 4,))
