"""The sparse engine on tokens: layers over the last dimension, embeddings and attention, against float64 networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import check, check_inference, computed_densely, kernels, opcodes_of  # noqa: F401
from token_networks import Tokens
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.models.transformers import CharTransformer, ViT
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


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


def test_residual_connections_are_added_by_the_layers_before_them() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            first, *others = self.layers
            x = first(x.unflatten(1, (-1, 8)))
            for layer in others:
                x = x + layer(torch.relu(x))
            return x

    check(Residual(), (40,))
    assert OPCODES["add"] not in opcodes_of(Residual(), (40,), 20, 0.4)


def test_gelu_and_its_slope_are_float64s_but_for_rounding() -> None:
    places = torch.linspace(-12, 12, 4001)

    class Bent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(places.clone())

        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x + self.places)

    model = lf.from_module(Bent(), prunable=["places"], warn=False)
    params, buffers = model.init(0)
    stored = Stored(places.shape, torch.float32)
    program = program_of(
        captured(model, places.shape, training=True), params, buffers, {}, batch=1, stored=stored,
        epilogue=Epilogue(None),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    x, y = torch.zeros(1, 1, 4001), torch.zeros(1, 1, dtype=torch.int64)
    workspace.run(x, y, within=(0, program.forward))
    outputs = workspace.handed_out(1)[0][0].clone()
    workspace.outputs.fill_(1.0)
    workspace.run(x, y, within=(program.forward, workspace.end))
    exact = places.double().requires_grad_()
    values = F.gelu(exact)
    (slopes,) = torch.autograd.grad(values.sum(), exact)
    assert float(((outputs - values) / exact.abs().clamp(min=1)).detach().abs().max()) < 3e-7
    assert float((workspace.gradients - slopes).abs().max()) < 5e-7


def test_long_rows_of_tokens_are_taken_in_pieces() -> None:
    """More tokens and features than a first-level cache holds, also where layers are computed densely."""
    net = Tokens(lambda net, x: x + F.gelu(net.norm(x), approximate="tanh"), 160, 96)
    check(net, (32 * 160,), 20, 0.1)
    check_inference(net, (32 * 160,), density=0.1)
    with computed_densely():
        check(net, (32 * 160,), 20, 0.7)


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


class Placed(nn.Module):
    """Embedded tokens, rows of a table of eight places, and logits by the embedding's weights."""

    def __init__(self, places: Tensor, logits: Callable[[Tensor, Tensor], Tensor], padding: int | None = None) -> None:
        super().__init__()
        self.register_buffer("numbers", places)
        self.embed, self.places, self.logits = nn.Embedding(9, 6), nn.Embedding(8, 6, padding), logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(torch.tanh(self.embed(x) + self.places(self.numbers)), self.embed.weight)


@pytest.mark.parametrize(
    ("places", "logits"),
    [
        (torch.arange(5), lambda x, w: x @ w.T),
        (torch.arange(2, 7)[None], lambda x, w: torch.matmul(x, w.t())),
        (torch.arange(5).view(1, 5), lambda x, w: x @ w.transpose(0, 1)),
        (torch.arange(1, 6), lambda x, w: x @ w.mT),
        (torch.tensor([3]), lambda x, w: x @ w.permute(1, 0)),
    ],
    ids=["T", "t", "transpose", "mT", "permute"],
)
def test_tables_of_places_and_products_with_tied_weights(places: Tensor, logits: Callable[..., Tensor]) -> None:
    check(Placed(places, logits), (5,), 20, 0.4, tokens=9)
    check_inference(Placed(places, logits), (5,), tokens=9)


@pytest.mark.parametrize(
    ("places", "padding"),
    [(torch.tensor([1, 0, 2, 3, 4]), None), (torch.zeros(5, dtype=torch.int64), None), (torch.arange(5), 2)],
    ids=["in another order", "one row", "of padding"],
)
def test_other_rows_that_are_known(places: Tensor, padding: int | None) -> None:
    check(Placed(places, F.linear, padding), (5,), tokens=9)
    check_inference(Placed(places, F.linear, padding), (5,), tokens=9)


def test_tokens_beyond_the_vocabulary_are_refused() -> None:
    with pytest.raises(Exception, match=r"token \d is none of 5"):
        check(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)), (3,), tokens=10, seed=1)


def test_transformers() -> None:
    """The catalogue's, small: gradients in training, and outputs in evaluation for many examples and for one."""
    for length in (16, 13):
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
        (
            lambda net, x: x.transpose(0, 1).reshape(x.shape),
            "reshape across dimensions that don't lie one behind the other",
        ),
        (lambda net, x: F.layer_norm(x, (6, 12)), "layer_norm over more than the last dimension"),
    ],
)
def test_forms_without_a_lowering_are_named(function: Callable[[Tokens, Tensor], Tensor], words: str) -> None:
    with pytest.raises(lf.UserError, match=words):
        check(Tokens(function, 4, 12), (6 * 4,))


def test_steps_and_evaluations_equal_the_eager_engine() -> None:
    """Of a tied transformer on texts; an evaluation's accuracy is of tokens, not of examples.

    By SGD: Adam would take steps by the rounding of keys' biases, whose gradients are zero.
    """
    text = torch.randint(0, 7, (40, 10), generator=torch.Generator().manual_seed(0))
    pair = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    data = lf.data.from_tensors("text", pair, pair, val=8)
    model = lf.models.char_transformer((9,), 7, layers=1, heads=2, width=16, tied=True)
    start = lf.prune(density=0.5, score=lf.random_scores(0))(lf.init(model))
    states, found = [], []
    for engine in ("eager", lf.sparse_engine):
        trainer = make_trainer(model, data, optimizer=lf.sgd(0.1, momentum=0.9), batch_size=8, engine=engine)
        states.append(take_steps(trainer, start, seed=0, until=6)[0])
        state = states[-1]
        (quality,) = trainer.engine.measure([state], data.val)
        found.append([float(quality.loss), float(quality.accuracy)])
    for name, leaf in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], leaf, rtol=1e-4, atol=1e-5)
    assert found[1] == pytest.approx(found[0], rel=1e-4)
