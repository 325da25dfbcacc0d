"""Programs of the sparse engine beside dense float64 networks: what its tests share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse import rolling
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.lowerings import dense
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.model import apply_evaluating, apply_training

#: float32 sums of some hundred terms against float64 ones, relative to the largest of a leaf.
TOLERANCE = 2e-5


@pytest.fixture(scope="module", autouse=True)
def kernels() -> None:
    build.load_kernels()


@pytest.fixture
def rows_roll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images' rows roll wherever they can, also where that would not pay."""
    monkeypatch.setattr(rolling, "have_avx512", lambda: True)


@pytest.fixture
def no_rows_roll(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image's rows do, so that whole images or bands of them are taken."""
    monkeypatch.setattr(rolling, "have_avx512", lambda: False)


@contextmanager
def computed_densely(small: int = 0) -> Iterator[None]:
    """Survivors spread out among zeros, at any density and size, though it pays at few."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIENTS_FROM", "PRODUCTS_FROM", "CONVOLUTIONS_FROM"):
            patch.setattr(dense, name, 0)
        for name in ("_ROWS", "_PLACES", "_ENTRIES"):
            patch.setattr(dense, name, 1)
        patch.setattr(dense, "_SMALL", small)
        yield


def opcodes_of(module: nn.Module, shape: tuple[int, ...], batch: int, density: float) -> set[int]:
    """The instructions of a training step."""
    model = lf.from_module(module)
    code = program_of(
        captured(model, shape, training=True), *model.init(0), random_masks(model, density, 1), batch=batch,
        stored=Stored(shape, torch.float32), epilogue=Epilogue(),
    ).code  # fmt: skip
    return set(code.rows[:, 0].tolist())


def random_masks(model: lf.Model, density: float, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    params, _ = model.init(0)
    return {name: torch.rand(params[name].shape, generator=generator) < density for name in model.prunable}


def both(
    module: nn.Module, shape: tuple[int, ...], batch: int, density: float, seed: int = 0, *, tokens: int = 0
) -> Any:
    """(loss, gradients) of a masked network by the machine and in float64.

    tokens: of the vocabulary, where inputs are tokens. A network of outputs (n, length, classes) has a target for each
    token, every fifth of which counts for nothing.
    """
    model = lf.from_module(module, tokens=bool(tokens), warn=False)
    masks = random_masks(model, density, seed)
    params, buffers = model.init(seed)
    params = lf.apply_masks(params, masks)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=generator)
    if tokens:
        x = torch.randint(0, tokens, (batch, *shape), generator=generator)

    graph = captured(model, shape, training=True)
    program = program_of(
        graph, params, buffers, masks, batch=batch, stored=Stored(shape, x.dtype), epilogue=Epilogue(),
    )  # fmt: skip
    (*places, classes), *_ = program.outputs
    y = torch.randint(0, classes, (batch, *places), generator=generator)
    if y.ndim > 1:
        y = torch.where(torch.rand(y.shape, generator=generator) < 0.2, -100, y)
        y.flatten()[0] = 1
    workspace = Workspace(program, params, buffers)
    workspace.run(x[None], y[None])
    ours = workspace.dense(workspace.gradients)

    def loss(params: dict[str, Tensor]) -> Tensor:
        wide = {name: value.double() if value.is_floating_point() else value for name, value in buffers.items()}
        outputs = apply_training(model, params, wide, x if tokens else x.double())[0]
        return F.cross_entropy(outputs.flatten(0, -2), y.flatten())

    grads, value = torch.func.grad_and_value(loss)({name: leaf.double() for name, leaf in params.items()})
    theirs = {name: grad * masks[name] if name in masks else grad for name, grad in grads.items()}
    return float(workspace.totals[0]), ours, float(value), theirs


def check(
    module: nn.Module, shape: tuple[int, ...], batch: int = 20, density: float = 0.4, seed: int = 0, *, tokens: int = 0
) -> None:
    loss, ours, value, theirs = both(module, shape, batch, density, seed, tokens=tokens)
    assert loss == pytest.approx(value, rel=1e-5)
    for name, grad in theirs.items():
        scale = float(grad.abs().max()) + 1e-4
        difference = float((ours[name].double() - grad).abs().max())
        assert difference <= TOLERANCE * scale + 1e-6, (name, difference, scale)


def check_inference(
    module: nn.Module, shape: tuple[int, ...], batch: int = 5, density: float = 0.4, *, tokens: int = 0
) -> None:
    """A ticket's outputs by the machine against the module's own, of a batch and of one example."""
    model = lf.from_module(module, tokens=bool(tokens), warn=False)
    masks = random_masks(model, density, 1)
    params, buffers = model.init(1)
    params = lf.apply_masks(params, masks)
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(0, tokens, (batch, *shape), generator=generator) if tokens else torch.randn(batch, *shape)
    run = lf.sparse_program(model, lf.Ticket(params, buffers, masks))
    wanted = apply_evaluating(model, params, buffers, x)
    torch.testing.assert_close(run(x), wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run(x[:1]), wanted[:1], rtol=1e-4, atol=1e-5)


class Head(nn.Module):
    """A body, then three classes from whatever it gives."""

    def __init__(self, body: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.body = body
        with torch.no_grad():
            size = body.eval()(torch.zeros(2, *shape)).flatten(1).shape[1]
        body.train()
        self.out = nn.Linear(size, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.body(x).flatten(1))
        return found


def conv(ins: int = 3, outs: int = 6) -> nn.Module:
    return nn.Conv2d(ins, outs, 3, padding=1)
