"""What is no number, and infinities, go through every engine as through PyTorch's own operations."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from network_engines import interpreted
from sparse_programs import computed_densely
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import DivergedError
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.engines.toolchain import why_not
from lthfunc.trees.model import apply_evaluating, apply_training
from lthfunc.trees.types import Dataset, Split

sparse = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))
compiles = pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))

ODD = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 3.0, -3.0, 6.0, 1.0, -1.0, 7.0, 200.0, -200.0)


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    if build.why_no_kernels() is None:
        build.load_kernels()


class Applied(nn.Module):
    """A function of each input times one and plus nothing; a depthwise convolution, whose weight is one, writes it."""

    def __init__(self, function: Callable[[Tensor], Tensor], *, normed: bool = False) -> None:
        super().__init__()
        self.function, self.normed = function, normed
        self.layer = nn.Conv2d(2, 2, 1, groups=2, bias=False)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return self.function(self.norm(x) if self.normed else x).flatten(1)


def images(batch: int) -> Tensor:
    """Odd numbers in some places of some examples, each alone in a window or with others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 2, 4, 6, generator=generator)
    for example in range(0, batch, 2):
        places = torch.randperm(24, generator=generator)[: 4 + example % 5]
        which = torch.randint(0, len(ODD), (len(places),), generator=generator)
        x[example, example % 4 // 2].view(-1)[places] = torch.tensor(ODD)[which]
    x[0] = float("nan")
    return x


def check(module: nn.Module, batch: int, *, endless: bool = True) -> None:
    """Outputs in both modes, together and alone, and the gradients of what is finite."""
    model = lf.from_module(module)
    params, buffers = model.init(0)
    params = {name: torch.ones_like(leaf) if leaf.ndim > 1 else leaf for name, leaf in params.items()}
    x = images(batch)
    if not endless:
        x = torch.where(x.isinf(), 0, x)
    expected = apply_evaluating(model, params, buffers, x)
    run = lf.sparse_program(model, lf.Ticket(params, buffers, {}))
    same: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(run(x), expected, **same)
    torch.testing.assert_close(torch.cat([run(x[i : i + 1]) for i in range(min(batch, 6))]), expected[:6], **same)

    program = program_of(
        captured(model, (2, 4, 6), training=True), params, buffers, {}, batch=batch,
        stored=Stored((2, 4, 6), torch.float32), epilogue=Epilogue(None),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    end = len(program.code.rows)
    y = torch.zeros(1, batch, dtype=torch.int64)
    workspace.run(x[None], y, within=(0, program.forward))
    outputs, after = apply_training(model, params, buffers, x)
    torch.testing.assert_close(workspace.handed_out(batch)[0], outputs, **same)
    workspace.outputs.copy_(torch.linspace(-1, 1, workspace.outputs.numel()).view_as(workspace.outputs))
    given = workspace.handed_out(batch)[0].clone()
    workspace.run(x[None], y, within=(program.forward, end))
    pull: Any = torch.func.vjp(lambda params: apply_training(model, params, buffers, x)[0], params)[1]
    (grads,) = pull(given)
    ours = workspace.dense(workspace.gradients)
    for name, grad in grads.items():
        # Which of two numbers is no number tells nothing in a sum; whether the sum is one, much.
        torch.testing.assert_close(ours[name], grad, **same)
    for name, leaf in workspace.buffers(buffers, 1).items():
        torch.testing.assert_close(leaf, after[name], **same)


FUNCTIONS = {
    "relu": torch.relu, "leaky": lambda x: F.leaky_relu(x, 0.1), "relu6": F.relu6, "sigmoid": torch.sigmoid,
    "tanh": torch.tanh, "silu": F.silu, "gelu": F.gelu, "hardtanh": F.hardtanh, "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish, "elu": F.elu, "selu": F.selu, "celu": F.celu, "mish": F.mish, "abs": torch.abs,
    "hardtanh of other limits": lambda x: F.hardtanh(x, -3, 1), "clamp": lambda x: x.clamp(-3, 1),
    "limits": lambda x: x.clamp(min=1) + x.clamp(max=-1), "softplus": F.softplus,
    "steep softplus": lambda x: F.softplus(x, 2, 6), "log sigmoid": F.logsigmoid, "softsign": F.softsign,
    "shrunk": lambda x: F.hardshrink(x, 3) + F.softshrink(x, 1), "threshold": lambda x: F.threshold(x, 1, -2),
    "larger": lambda x: torch.maximum(x, x.flip(3)), "smaller": lambda x: torch.minimum(x.flip(2), x),
    "larger than a number": lambda x: torch.maximum(x, torch.tensor(1.0)), "largest": lambda x: x.amax((2, 3)),
    "smallest": lambda x: x.amin(1), "first largest": lambda x: x.max(3).values,
    "twice": lambda x: torch.relu(torch.relu(x)),
    "pool": lambda x: F.max_pool2d(x, 2), "rectified pool": lambda x: F.max_pool2d(torch.relu(x), 2),
    "overlapping": lambda x: F.max_pool2d(x, 3, 2, 1), "padded": lambda x: F.max_pool2d(torch.relu(x), 3, 1, 1),
    "average": lambda x: F.avg_pool2d(x, 2), "adaptive": lambda x: F.adaptive_avg_pool2d(torch.relu(x), (1, 2)),
    "sum": lambda x: torch.relu(x + torch.relu(x)), "doubled": lambda x: torch.relu(x + x),
    "joined": lambda x: torch.cat([torch.relu(x), x], 1), "part": lambda x: torch.relu(x)[:, 1:],
    "group": lambda x: torch.relu(F.group_norm(x, 2)), "scaled": lambda x: torch.relu(x * 0.5),
    "log": lambda x: F.log_softmax(x.flatten(1), 1),
}  # fmt: skip


@sparse
@pytest.mark.parametrize("batch", [5, 16, 19])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_odd_numbers_are_pytorchs(name: str, batch: int) -> None:
    # PyTorch has two values of GELU at infinity, by how it computes that.
    check(Applied(FUNCTIONS[name]), batch, endless=name != "gelu")


@sparse
@pytest.mark.parametrize("name", ["relu", "pool", "rectified pool", "sum"])
def test_normalised_odd_numbers_are_pytorchs(name: str) -> None:
    check(Applied(FUNCTIONS[name], normed=True), 19)


class Dense(nn.Module):
    """Layers of all their weights, with pooling and without."""

    def __init__(self, *, pool: bool) -> None:
        super().__init__()
        self.pool, self.conv = pool, nn.Conv2d(2, 18, 3, padding=1)
        self.one, self.two = nn.Linear(18 * (6 if pool else 24), 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        out: Tensor = self.two(torch.relu(self.one((F.max_pool2d(x, 2) if self.pool else x).flatten(1))))
        return out


@sparse
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_layers_of_odd_numbers_are_pytorchs(pool: bool, dense: bool) -> None:
    with computed_densely() if dense else nullcontext():
        check(Dense(pool=pool), 19)


ENGINES = [
    "eager",
    pytest.param(lf.sparse_engine, marks=sparse, id="sparse"),
    pytest.param(interpreted, marks=compiles, id="compile"),
]


def odd_digits(digits: Dataset) -> Dataset:
    """Some digits, one of which, in training, has a place that is no number."""
    x = digits.train.x[:60].float() / 16
    large = x.clone()
    large[7, 0, 3, 3] = float("nan")
    cut, y = Split(x, digits.train.y[:60]), digits.train.y[:60]
    return Dataset("digits", Split(large, y), cut, cut, 10)


class Diverging(nn.Module):
    """Two layers with a maximum between them, which would hide what is no number."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(6 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(F.max_pool2d(torch.relu(self.conv(x)), 2).flatten(1))
        return found


def fitted(data: Dataset, engine: Any, on_nonfinite: Any, rate: float) -> lf.Fit:
    model = lf.from_module(Diverging())
    start = lf.prune(density=0.5, score=lf.random_scores(0))(lf.init(model))
    trainer = lf.make_trainer(
        model, data, optimizer=lf.sgd(rate), batch_size=20, engine=engine, on_nonfinite=on_nonfinite,
    )  # fmt: skip
    return lf.fit(trainer, start, seed=0, until=6, eval_every=3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_diverging_training_stops_alike_on_every_engine(digits: Dataset, engine: Any) -> None:
    with pytest.raises(DivergedError) as caught:
        fitted(digits._replace(train=digits.val), engine, "stop", 1e25)
    assert str(caught.value) == (
        "training diverged: the loss (nan) of step 2 is not finite, learning rate 1e+25; a smaller lr may help, or "
        "on_nonfinite 'skip', which leaves such steps out"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_that_are_not_finite_are_left_out_alike(digits: Dataset, engine: Any) -> None:
    found, eager = (fitted(odd_digits(digits), each, "skip", 0.05) for each in (engine, "eager"))
    start = lf.init(lf.from_module(Diverging())).params
    assert any(not torch.equal(leaf, start[name]) for name, leaf in found.state.params.items() if "bias" in name)
    for name, leaf in eager.state.params.items():
        torch.testing.assert_close(found.state.params[name], leaf, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_training_as_a_function_stops_or_leaves_out_what_a_fit_does(digits: Dataset, engine: Any) -> None:
    """`lf.train` gave weights that were no numbers."""
    model = lf.from_module(Diverging())
    start = lf.prune(density=0.5, score=lf.random_scores(0))(lf.init(model))

    def trained(data: Dataset, on_nonfinite: Any, rate: float, state: lf.TrainState = start) -> lf.TrainState:
        return lf.train(
            model, data, optimizer=lf.sgd(rate), steps=6, batch_size=20, engine=engine, on_nonfinite=on_nonfinite
        )(state)  # fmt: skip

    with pytest.raises(DivergedError, match=r"the loss \(nan\) of step 2 is not finite"):
        trained(digits._replace(train=digits.val), "stop", 1e25)
    found, fit = trained(odd_digits(digits), "skip", 0.05), fitted(odd_digits(digits), engine, "skip", 0.05)
    assert lf.same_bits(found.params, fit.state.params)
    lost = start._replace(params={**start.params, "out.bias": torch.full((10,), float("nan"))})
    for on_nonfinite in ("stop", "skip"):  # where no step is finite, there is nothing to go on with
        with pytest.raises(DivergedError, match="step"):
            trained(odd_digits(digits), on_nonfinite, 0.05, lost)
    trainer = lf.make_trainer(model, odd_digits(digits), optimizer=lf.sgd(0.05), batch_size=20, engine=engine)
    there = lost._replace(step=torch.tensor(1))
    assert lf.same_bits(lf.take_steps(trainer, there, seed=0, until=1)[0].params, lost.params)


class Causal(nn.Module):
    """Rows of a normalised image, of which each attends to those above it by a mask of minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.norm, self.out = nn.Linear(8, 8), nn.BatchNorm2d(1), nn.Linear(64, 10)
        self.register_buffer("mask", torch.full((8, 8), -float("inf")).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).flatten(1).unflatten(1, (8, 8))
        found: Tensor = self.out(((x @ self.keys(x).mT + self.mask).softmax(-1) @ x).flatten(1))
        return found


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_a_mask_of_infinities_is_no_sign_of_divergence(digits: Dataset, engine: Any) -> None:
    """Running statistics that are not finite still are."""
    model = lf.from_module(Causal(), warn=False)
    data = odd_digits(digits)._replace(train=odd_digits(digits).val)
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.05), batch_size=20, engine=engine)
    start = lf.prune(density=0.5, score=lf.random_scores(0))(lf.init(model))
    state = lf.fit(trainer, start, seed=0, until=6, eval_every=3).state
    assert not torch.equal(state.params["keys.bias"], start.params["keys.bias"])
    assert torch.equal(state.buffers["mask"], start.buffers["mask"])
    start.buffers["norm.running_var"].fill_(float("nan"))
    with pytest.raises(DivergedError):
        lf.fit(trainer, start, seed=0, until=6, eval_every=3)
