"""The sparse engine's attention, fused and by hand, against dense float64 networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import check, check_inference, kernels  # noqa: F401
from token_networks import Tokens, attended, joined
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


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

    check(Once(function, 4, 12, 2), (10 * 4,), 20)


def by_hand(net: Tokens, x: Tensor) -> Tensor:
    q, k, v = net.split(x)
    weights = (q @ k.transpose(-2, -1) / 2.5).softmax(-1)
    return joined(weights @ v)


def of_each_head(net: Tokens, x: Tensor) -> Tensor:
    """As `nn.MultiheadAttention` has it: batch and heads in one dimension."""
    q, k, v = (each.flatten(0, 1) for each in net.split(x))
    found = torch.bmm(torch.softmax(torch.bmm(q, k.mT), -1), v)
    return joined(found.unflatten(0, (-1, net.heads)))


@pytest.mark.parametrize(
    "function",
    [
        by_hand,
        of_each_head,
        lambda net, x: x.softmax(1) * x.log_softmax(-1),
        lambda net, x: (x @ torch.relu(x).mT) @ x,
        lambda net, x: x @ x[:, :2].mT @ x[:, 1:3],
    ],
)
@pytest.mark.parametrize("length", [3, 10])
def test_attention_by_hand(function: Callable[[Tokens, Tensor], Tensor], length: int) -> None:
    check(Tokens(function, 4, 12, 2), (length * 4,), 20)
    check_inference(Tokens(function, 4, 12, 2), (length * 4,))


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_layers_of_pytorch(weights: bool, batch_first: bool) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(12, 3, batch_first=batch_first), nn.Linear(12, 3)
            self.layer = nn.TransformerEncoderLayer(12, 2, 20, dropout=0.0, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = x.unflatten(1, (-1, 12))
            y = x if batch_first else x.transpose(0, 1)
            y = self.attention(y, y, y, need_weights=weights)[0]
            found: Tensor = self.out(self.layer(y if batch_first else y.transpose(0, 1)))
            return found

    check(Layer(), (5 * 12,), 20)


def test_dropout_of_attention_keeps_the_mean_and_its_gradient() -> None:
    """Of ones: a query's outputs are sums of kept weights, and so are the gradients of values."""

    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, 2, 40, 1))

        def forward(self, x: Tensor) -> Tensor:
            keys = (x * 0.0).view(len(x), 2, 40, 1)
            values = keys + self.scale
            return F.scaled_dot_product_attention(keys, keys, values, dropout_p=0.25).flatten(1)

    model = lf.from_module(Dropped(), prunable=["scale"], warn=False)
    params, buffers = model.init(0)
    graph = captured(model, (80,), training=True)
    program = program_of(
        graph, params, buffers, {}, batch=20, stored=Stored((80,), torch.float32), epilogue=Epilogue(None),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    x, y = torch.zeros(1, 20, 80), torch.zeros(1, 20, dtype=torch.int64)
    outputs = []
    for step in range(2):
        workspace.run(x, y, 1, step, 7, (0, program.forward))
        outputs.append(workspace.handed_out(20)[0].clone())
        workspace.outputs.fill_(1.0)
        workspace.run(x, y, 1, step, 7, (program.forward, workspace.end))
        # Each value's gradient is the sum of the weights that its key has: in all, that of the outputs.
        assert float(workspace.gradients.sum()) == pytest.approx(float(outputs[-1].sum()), rel=1e-4)
    assert float(outputs[0].mean()) == pytest.approx(1.0, abs=0.02)
    assert float(outputs[0].std()) == pytest.approx((0.25 / 0.75 / 40) ** 0.5, rel=0.1)
    assert not torch.equal(outputs[0], outputs[1])


def test_queries_of_their_own() -> None:
    for count in (1, 9):
        check(Queries(count), (5 * 4,), 20)


@pytest.mark.parametrize(("queries", "keys"), [(30, 13), (9, 30), (29, 29)])
def test_causal_attention_of_many_places(queries: int, keys: int) -> None:
    """The gradient goes by shares of a dozen keys and eight queries, some of which read nothing."""

    def function(net: Tokens, x: Tensor) -> Tensor:
        q, k, v = net.split(x)
        return joined(attended([q[:, :, :queries], k[:, :, :keys], v[:, :, :keys]], is_causal=True))

    check(Tokens(function, 2, 10, 2), (30 * 2,), 20, 1.0)
