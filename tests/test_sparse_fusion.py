"""What a writer does on the way (normalise, add, rectify, maxima): every short sequence of it, against float64."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_evaluating, apply_training

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

CHANNELS, CLASSES = 3, 3
#: What may follow a layer. "kept" reads the value once more, so that nothing may change it in place.
STEPS = ("norm", "relu", "pool", "add", "radd", "double", "kept")


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    build.load_kernels()


class Branch(nn.Module):
    """A layer and a sequence of steps; `skip` is what its additions add."""

    def __init__(self, steps: tuple[str, ...], *, linear: bool) -> None:
        super().__init__()
        self.steps, self.linear = steps, linear
        self.layer: nn.Module = nn.Linear(CHANNELS, CHANNELS) if linear else nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        norm = nn.BatchNorm1d if linear else nn.BatchNorm2d
        self.norms = nn.ModuleList(norm(CHANNELS) for step in steps if step == "norm")

    def forward(self, skip: Tensor) -> Tensor:
        x, norms, kept = self.layer(skip), iter(self.norms), []
        for step in self.steps:
            if step == "norm":
                x = next(norms)(x)
            elif step == "relu":
                x = torch.relu(x)
            elif step == "pool":
                x, skip = F.max_pool2d(x, 2), F.avg_pool2d(skip, 2)
            elif step == "add":
                x = x + skip
            elif step == "radd":
                x = skip + x
            elif step == "double":
                x = x + x
            else:
                kept.append(x)
        if not self.linear:
            x, kept = (F.adaptive_avg_pool2d(x, 1), [F.adaptive_avg_pool2d(each, 1) for each in kept])
        out: Tensor = sum(kept, x)
        return out


class Branches(nn.Module):
    """Branches side by side, of a value that a ReLU wrote, and classes from the sum of what each of them gives."""

    def __init__(self, every: list[tuple[str, ...]], *, linear: bool) -> None:
        super().__init__()
        self.first: nn.Module = nn.Linear(2, CHANNELS) if linear else nn.Conv2d(2, CHANNELS, 3, padding=1)
        self.branches = nn.ModuleList(Branch(steps, linear=linear) for steps in every)
        self.head = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        given = [branch(x) for branch in self.branches]
        out: Tensor = self.head(sum(given[1:], given[0]).flatten(1))
        return out


def prepared(module: nn.Module, shape: tuple[int, ...], batch: int) -> Any:
    """(model, params, buffers, masks, x, y): half of the weights, running statistics of their own."""
    model = lf.from_module(module)
    params, buffers = model.init(0)
    generator = torch.Generator().manual_seed(1)
    masks = {name: torch.rand(params[name].shape, generator=generator) < 0.6 for name in model.prunable}
    params = {name: leaf + 0.1 * torch.randn(leaf.shape, generator=generator) for name, leaf in params.items()}
    buffers = {
        name: leaf + torch.rand(leaf.shape, generator=generator) if leaf.is_floating_point() else leaf
        for name, leaf in buffers.items()
    }
    x = torch.randn(batch, *shape, generator=generator)
    return model, lf.apply_masks(params, masks), buffers, masks, x, torch.randint(0, CLASSES, (batch,))


def wide(tree: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in tree.items()}


def check(module: nn.Module, shape: tuple[int, ...], batch: int = 20) -> None:
    """Loss, gradients and new statistics of a training step, and outputs in evaluation: of a batch and one by one."""
    model, params, buffers, masks, x, y = prepared(module, shape, batch)
    program = program_of(
        captured(model, shape, training=True), params, buffers, masks, batch=batch,
        stored=Stored(shape, torch.float32), epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    workspace.run(x[None], y[None])

    def loss(params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, after = apply_training(model, params, wide(buffers), x.double())
        return F.cross_entropy(outputs, y), after

    grads, (value, after) = torch.func.grad_and_value(loss, has_aux=True)(wide(params))
    assert float(workspace.totals[0]) == pytest.approx(float(value), rel=1e-5)
    ours = workspace.dense(workspace.gradients)
    largest = max(float(grad.abs().max()) for grad in grads.values())  # of all: some have rounding alone
    for name, grad in grads.items():
        held = grad * masks[name] if name in masks else grad
        assert torch.allclose(ours[name].double(), held, rtol=1e-4, atol=1e-5 * largest + 1e-6), name
    for name, leaf in workspace.buffers(buffers, 1).items():
        assert torch.allclose(leaf.double(), after[name].double(), rtol=1e-5, atol=1e-6), name

    run = lf.sparse_program(model, lf.Ticket(params, buffers, masks))
    expected = apply_evaluating(model, wide(params), wide(buffers), x.double())
    for outputs in (run(x), torch.cat([run(x[i : i + 1]) for i in range(3)])):
        assert torch.allclose(outputs.double(), expected[: len(outputs)], rtol=1e-4, atol=1e-4)


class Residual(nn.Module):
    """x + relu(batch_norm(y)), as in a ResNet-9, in one order or the other."""

    def __init__(self, *, linear: bool, turned: bool) -> None:
        super().__init__()
        self.first = Branch(("norm", "relu"), linear=linear)
        self.second = Branch(("norm", "relu"), linear=linear)
        self.head, self.turned = nn.Linear(CHANNELS, CLASSES), turned
        if not linear:
            for branch in (self.first, self.second):
                branch.linear = True  # without the mean of each image

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        x = y + x if self.turned else x + y
        out: Tensor = self.head(x.mean((2, 3)) if x.ndim == 4 else x)
        return out


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_a_rectified_normalisation_is_rectified_before_it_is_added(linear: bool, turned: bool) -> None:
    check(Residual(linear=linear, turned=turned), (CHANNELS,) if linear else (CHANNELS, 6, 6))


@pytest.mark.parametrize("linear", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("first", STEPS)
def test_every_sequence_of_steps_after_a_layer(first: str, linear: bool) -> None:
    """Those of up to three steps that begin with this one, side by side in one network."""
    steps = [step for step in STEPS if not (linear and step == "pool")]
    if first not in steps:
        return
    every = [(first,), *((first, second) for second in steps)]
    every += [(first, *rest) for rest in itertools.product(steps, steps[:-2])]
    check(Branches(every, linear=linear), (2,) if linear else (2, 8, 8))


#: Of inputs, before any layer: values that no gradient is wanted of.
BEFORE: dict[str, Any] = {
    "joined": lambda x: torch.cat([x, x * 0.7], 1), "joined with itself": lambda x: torch.cat([x, x], 1),
    "added": lambda x: x + torch.sigmoid(x), "doubled": lambda x: x + x, "padded": lambda x: F.pad(x, (1, 0, 0, 2)),
    "part": lambda x: x[:, 1:, ::2], "rectified": torch.relu, "maxima": lambda x: F.max_pool2d(x, 2),
    "overlapping maxima": lambda x: F.max_pool2d(x, 3, 2, 1), "means": lambda x: F.avg_pool2d(x, 2),
    "batch norm": nn.BatchNorm2d(2, affine=False), "group norm": nn.GroupNorm(2, 2, affine=False),
    "rectified batch norm": nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()),
}  # fmt: skip


@pytest.mark.parametrize("before", BEFORE)
def test_what_comes_before_all_layers_needs_no_gradient(before: str) -> None:
    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if isinstance(BEFORE[before], nn.Module):
                self.before = copy.deepcopy(BEFORE[before])
            channels, height, width = self.prepared(torch.zeros(2, 2, 8, 6)).shape[1:]
            self.conv = nn.Conv2d(channels, CHANNELS, 3, padding=1)
            self.head = nn.Linear((CHANNELS + 1) * height * width, CLASSES)

        def prepared(self, x: Tensor) -> Tensor:
            out: Tensor = getattr(self, "before", BEFORE[before])(x)
            return out

        def forward(self, x: Tensor) -> Tensor:
            x = self.prepared(x)
            out: Tensor = self.head(torch.cat([torch.tanh(self.conv(x)), x[:, :1]], 1).flatten(1))
            return out

    check(Before(), (2, 8, 6))
