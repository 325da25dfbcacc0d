"""Frozen layers on the sparse engine: no gradients, no optimiser's state, and the bits that they had."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparse_modules import check_gradients, pair
from sparse_programs import Head, check, check_inference, computed_densely, conv, kernels, random_masks  # noqa: F401
from token_networks import Tokens, attended, joined
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.program import Epilogue, Program, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Residual(nn.Module):
    """A body whose value is added to its input."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.relu(self.body(x) + x)
        return found


class Recurrent(nn.Module):
    """A recurrent layer of both directions, and three classes for each step."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(4, 5), layer(5, 6, 2, bidirectional=True, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.layer(self.first(x.unflatten(1, (-1, 4))))[0])
        return found


def block(net: Tokens, x: Tensor) -> Tensor:
    return x + joined(attended(net.split(net.norm(net.root(x)))))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (
        lambda: nn.Sequential(
            nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 11), nn.LayerNorm(11), nn.Tanh(), nn.Linear(11, 3)
        ), (9,),
    ),
    "convolutions": (
        lambda: Head(nn.Sequential(
            conv(2, 6), nn.BatchNorm2d(6), Residual(nn.Sequential(conv(6, 6), nn.BatchNorm2d(6))), nn.MaxPool2d(2),
            conv(6, 4), nn.ReLU(), nn.MaxPool2d(2),
        ), (2, 8, 8)), (2, 8, 8),
    ),
    "groups": (
        lambda: Head(nn.Sequential(
            nn.ConvTranspose2d(2, 6, 3, stride=2), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2),
            nn.Tanh(),
        ), (2, 4, 4)), (2, 4, 4),
    ),
    "tokens": (lambda: Tokens(block, 5, 12, 3), (7 * 5,)),
    "lstm": (lambda: Recurrent(nn.LSTM), (5 * 4,)),
    "gru": (lambda: Recurrent(nn.GRU), (5 * 4,)),
}  # fmt: skip


def partly_frozen(kind: str, seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    """About half of the leaves, but not the last layer's weight; with seed 0 all before it."""
    torch.manual_seed(seed)
    make, shape = NETWORKS[kind]
    net = make()
    leaves = list(net.parameters())
    for leaf, draw in zip(leaves[:-2], torch.rand(len(leaves)).tolist(), strict=False):
        leaf.requires_grad_(seed > 0 and draw < 0.5)
    return net, shape


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("seed", range(4))
def test_gradients_of_what_is_trained(kind: str, seed: int) -> None:
    net, shape = partly_frozen(kind, seed)
    check(net, shape, batch=[20, 5, 37, 16][seed], density=[0.4, 1.0, 0.2, 0.6][seed], seed=seed)
    if seed == 1:
        with computed_densely():
            check(*partly_frozen(kind, seed), batch=37, density=0.6)
        check_inference(net, shape)


def test_a_frozen_embedding() -> None:
    net = nn.Sequential(nn.Embedding(13, 8).requires_grad_(False), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 13))
    check(net, (9,), 20, 0.5, tokens=13)


def program(net: nn.Module, shape: tuple[int, ...]) -> Program:
    model = lf.from_module(net, warn=False)
    return program_of(
        captured(model, shape, training=True), *model.init(0), random_masks(model, 0.5, 0), batch=20,
        stored=Stored(shape, torch.float32), epilogue=Epilogue(),
    )  # fmt: skip


def test_nothing_is_computed_for_what_is_frozen() -> None:
    """With all but the last layer frozen one gradient of weights is left, and no product goes backward."""
    net, shape = partly_frozen("convolutions", 0)
    made = program(net, shape)
    counts = torch.bincount(made.code.rows[:, 0], minlength=len(OPCODES))
    assert counts[OPCODES["weight_gradients"]] + counts[OPCODES["dense_weight_gradients"]] == 1
    assert counts[OPCODES["products"]] + counts[OPCODES["dense_products"]] == 4
    assert made.backward - made.forward <= 3
    assert list(made.leaves) == ["out.weight", "out.bias"]
    assert made.code.trained < made.code.values
    params, buffers = lf.from_module(net, warn=False).init(0)
    workspace = Workspace(made, params, buffers)
    assert len(workspace.gradients) == len(workspace.values) == made.code.trained


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        ("linear", lf.adam(1e-2)),
        ("convolutions", lf.chain(lf.clip_by_global_norm(0.5), lf.sgd(0.1, 0.9), lf.ema(0.9))),
    ],
)
def test_a_training_is_that_of_the_eager_engine(kind: str, optimizer: lf.Optimizer) -> None:
    net, shape = partly_frozen(kind, 2)
    model = lf.from_module(net, warn=False)
    x = torch.randn(60, *shape)
    y = torch.randint(0, 3, (60,))
    data = lf.data.from_tensors("d", (x, y), (x[:9], y[:9]), val=9)
    start = lf.prune(fraction=0.6)(lf.init(model))
    ends = []
    for engine in ("eager", lf.sparse_engine):
        trainer = make_trainer(model, data, optimizer=optimizer, batch_size=16, engine=engine)
        ends.append(take_steps(trainer, start, seed=1, until=5)[0])
    eager, sparse = ends
    for name, leaf in eager.params.items():
        torch.testing.assert_close(sparse.params[name], leaf, rtol=1e-3, atol=1e-5)
    frozen = {name for name, _ in net.named_parameters()} - set(eager.params)
    assert frozen
    for name in frozen:
        assert torch.equal(sparse.buffers[name], start.buffers[name])


def test_frozen_parameters_of_a_module_in_a_loop_may_change() -> None:
    found = pair()
    wide = copy.deepcopy(found.dense).double()
    x, y = torch.randn(20, 2, 8, 8), torch.randint(0, 3, (20,))
    for frozen in (("0", "1"), ("1", "4"), ()):
        for module, inputs in ((found.sparse, x), (wide, x.double())):
            module.zero_grad()
            for name, leaf in module.named_parameters():
                leaf.requires_grad_(name.partition(".")[0] not in frozen)
            F.cross_entropy(module(inputs), y).backward()
        check_gradients(found, wide)
        (call,) = list(found.sparse._calls.values())[-1:]
        (halves,) = [halves for parts in call._halves for halves in parts.values()]
        trained = sum(leaf.numel() for leaf in found.sparse.parameters() if leaf.requires_grad)
        assert halves.program.code.trained == trained
