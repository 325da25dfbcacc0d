"""Numbers at the edge of what float32 has, through the sparse engine's kernels for tokens, and sums on threads."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import both, check, kernels, random_masks  # noqa: F401
from token_networks import Tokens, attended, joined
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Program, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def normed(norm: nn.Module) -> nn.Module:
    """Five tokens of 8 features, which are zeros where an example is."""
    return nn.Sequential(
        nn.Unflatten(1, (5, 4)), nn.Linear(4, 8, bias=False), norm, nn.Linear(8, 8), nn.Flatten(), nn.Linear(40, 3)
    )


@pytest.mark.parametrize("norm", [nn.LayerNorm(8, eps=0.0), nn.RMSNorm(8, eps=0.0)], ids=["layer", "RMS"])
@pytest.mark.parametrize("batch", [20, 32])
def test_tokens_are_normalised_without_an_epsilon(norm: nn.Module, batch: int) -> None:
    """The last tile's lanes without an example hold zeros, which nothing can be divided by."""
    check(normed(norm), (20,), batch, 0.7)


@pytest.mark.parametrize("batch", [20, 32])
def test_groups_are_normalised_without_an_epsilon(batch: int) -> None:
    body = nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.GroupNorm(2, 6, eps=0.0), nn.Conv2d(6, 6, 2))
    check(nn.Sequential(body, nn.Flatten(), nn.Linear(6 * 9, 3)), (2, 6, 6), batch, 0.7)


class Even(nn.Module):
    """Tokens that have one number in all channels, which is their mean."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.out = norm, nn.Linear(8, 3)
        self.register_buffer("ones", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(1, (5, 1)) * self.ones
        found: Tensor = self.out(self.norm(x))
        return found


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8, eps=1e-6)], ids=["layer", "RMS"])
def test_tokens_of_one_number_are_normalised(norm: nn.Module) -> None:
    check(Even(norm), (5,), 20, 0.7)


@pytest.mark.parametrize("fused", [True, False])
def test_causal_scores_far_apart(fused: bool) -> None:
    """Beyond what an exponential of float32 has, on both sides: the largest is subtracted before it is taken."""
    found = []

    def function(net: Tokens, x: Tensor) -> Tensor:
        q, k, v = net.split(x * 20)
        found.append(q @ k.mT)
        if fused:
            return joined(attended([q, k, v], is_causal=True, scale=1.0))
        return joined(found[-1].softmax(-1) @ v)

    net = Tokens(function, 4, 12, 2)
    check(net, (28,), 20, 0.7)
    model = lf.from_module(net)
    params = lf.apply_masks(model.init(0)[0], random_masks(model, 0.7, 0))
    apply_evaluating(model, params, {}, torch.randn(20, 28, generator=torch.Generator().manual_seed(0)))
    assert float(found[-1].max()) > 100
    assert float(found[-1].min()) < -100


class Masked(Tokens):
    """Attention by hand with a mask of minus infinity, a buffer."""

    def __init__(self, length: int = 6) -> None:
        super().__init__(self.attend, 4, 12, 2)
        self.register_buffer("mask", torch.full((length, length), -math.inf).triu(1))

    @staticmethod
    def attend(net: Tokens, x: Tensor) -> Tensor:
        q, k, v = net.split(x)
        return joined((q @ k.mT / 2.5 + net.get_buffer("mask")).softmax(-1) @ v)


@pytest.mark.parametrize("batch", [5, 33])
def test_a_mask_of_infinities(batch: int) -> None:
    check(Masked(), (24,), batch)


def program(model: lf.Model, shape: tuple[int, ...], batch: int) -> tuple[Program, Workspace]:
    params, buffers = model.init(0)
    found = program_of(
        captured(model, shape, training=True), params, buffers, {}, batch=batch, stored=Stored(shape, torch.float32),
        epilogue=Epilogue(),
    )  # fmt: skip
    return found, Workspace(found, params, buffers)


def test_buffers_that_no_step_changes_may_be_infinite() -> None:
    """Running statistics may not."""
    _, workspace = program(lf.from_module(Masked(), warn=False), (24,), 20)
    assert workspace.is_finite()
    workspace.values[3] = math.inf
    assert not workspace.is_finite()
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    for name in ("1.running_mean", "1.running_var"):
        found, workspace = program(lf.from_module(net), (2, 2, 2), 20)
        assert workspace.is_finite()
        workspace.constants[found.statistics[name] + 1] = -math.inf
        assert not workspace.is_finite()


def test_targets_that_count_for_nothing_at_all() -> None:
    """The mean of no losses is no number; their gradient is zero, as PyTorch has it."""
    model = lf.from_module(Tokens(lambda net, x: torch.relu(x), 4, 12), warn=False)
    _, workspace = program(model, (24,), 20)
    x = torch.randn(20, 24, generator=torch.Generator().manual_seed(0))
    y = torch.full((20, 6), -100)
    workspace.run(x[None], y[None])
    leaf = torch.zeros(20, 3, requires_grad=True)
    loss = F.cross_entropy(leaf, y[:, 0])
    loss.backward()
    assert math.isnan(loss.item())
    assert math.isnan(float(workspace.totals[0]))
    assert leaf.grad is not None
    assert float(leaf.grad.abs().max()) == float(workspace.gradients.abs().max()) == 0


class Grouped(nn.Module):
    """An embedding whose weight the output layer shares, layer normalisation, attention of shared keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 24), nn.LayerNorm(24)
        self.q, self.kv = nn.Linear(24, 24), nn.Linear(24, 12)
        self.gain = nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x) * self.gain
        q = self.q(y).unflatten(-1, (4, 6)).transpose(1, 2)
        k, v = (each.unflatten(-1, (1, 6)).transpose(1, 2) for each in self.kv(y).chunk(2, -1))
        x = x + joined(F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True))
        return F.linear(self.norm(x), self.embed.weight)


class Remembered(nn.Module):
    """An LSTM over an embedding, and a normalisation of each step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.norm = nn.Embedding(11, 12), nn.LSTM(12, 20, batch_first=True), nn.RMSNorm(20)
        self.out = nn.Linear(20, 11)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.norm(self.lstm(self.embed(x))[0]))
        return found


@pytest.mark.parametrize("module", [Grouped(), Remembered()], ids=["transformer", "LSTM"])
def test_tokens_have_the_same_bits_on_any_number_of_threads(module: nn.Module) -> None:
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            loss, gradients, *_ = both(module, (14,), 70, 0.5, tokens=11)
            found.append((torch.tensor(loss), gradients))
    finally:
        torch.set_num_threads(before)
    assert lf.same_bits(found[0], found[1])
    assert lf.same_bits(found[0], found[2])
    assert all(float(gradient.abs().max()) > 0 for gradient in found[0][1].values())
