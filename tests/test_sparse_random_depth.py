"""Stochastic depth on the sparse engine."""

from __future__ import annotations

import pytest
import torch
from sparse_programs import kernels  # noqa: F401
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

SHAPE, SHARE, BATCH = (3, 2, 2), 0.4, 600


class Net(nn.Module):
    """A branch that is left out of some examples, whose places are then the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 3, 1, bias=False), StochasticDepth(SHARE, "row")

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.drop(self.conv(x)).flatten(1)
        return found


def test_whole_examples_are_left_out() -> None:
    """At the share that is asked for, others in each step; and so are their gradients."""
    model = lf.from_module(Net())
    params, buffers = model.init(0)
    program = program_of(
        captured(model, SHAPE, training=True), params, buffers, {}, batch=BATCH, stored=Stored(SHAPE, torch.float32),
        epilogue=Epilogue(None),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(BATCH, *SHAPE, generator=draw), torch.zeros(BATCH, dtype=torch.int64)
    branch = nn.functional.conv2d(x, params["conv.weight"]).flatten(1)
    kept: list[Tensor] = []
    for step in (0, 1, 0):
        workspace.run(x[None], y[None], 1, step, 7, (0, program.forward))
        outputs = workspace.handed_out(BATCH)[0].clone()
        kept.append(outputs.abs().sum(1) > 0)
        torch.testing.assert_close(outputs, branch * kept[-1][:, None] / (1 - SHARE), rtol=1e-5, atol=1e-6)
    assert float(kept[0].float().mean()) == pytest.approx(1 - SHARE, abs=0.08)
    assert torch.equal(kept[0], kept[2])
    assert not torch.equal(kept[0], kept[1])
    gradient = torch.randn(BATCH, 12, generator=draw)
    workspace.handed_out(BATCH)[0].copy_(gradient)
    workspace.run(x[None], y[None], 1, 0, 7, (program.forward, program.backward))
    passed = (gradient.double() * kept[0][:, None] / (1 - SHARE)).view(BATCH, 3, 4)
    expected = torch.einsum("nop,nip->oi", passed, x.double().flatten(2))
    found = workspace.dense(workspace.gradients)["conv.weight"].double().flatten(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_other_random_numbers_are_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head((x * torch.empty(len(x), 3, 1, 1).bernoulli_(0.5)).flatten(1))
            return found

    model = lf.from_module(Noisy())
    with pytest.raises(lf.UserError, match="no rule for empty of anything but a number for each example"):
        lf.sparse_program(model, lf.init(model))(torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("share", [None, 0.0])
def test_a_share_that_is_left_out_is_a_half_and_none_is_refused(share: float | None) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(12, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            gate = torch.empty(len(x), 1)
            found: Tensor = self.head(x.flatten(1)) * (gate.bernoulli_() if share is None else gate.bernoulli_(share))
            return found

    model = lf.from_module(Gated())
    params, buffers = model.init(0)

    def made() -> Workspace:
        program = program_of(
            captured(model, SHAPE, training=True), params, buffers, {}, batch=BATCH,
            stored=Stored(SHAPE, torch.float32), epilogue=Epilogue(None),
        )  # fmt: skip
        return Workspace(program, params, buffers)

    if share is not None:
        with pytest.raises(lf.UserError, match="no rule for bernoulli that drops everything"):
            made()
        return
    workspace = made()
    x, y = torch.ones(1, BATCH, *SHAPE), torch.zeros(1, BATCH, dtype=torch.int64)
    workspace.run(x, y, 1, 0, 7, (0, workspace.program.forward))
    assert float((workspace.handed_out(BATCH)[0].abs().sum(1) > 0).float().mean()) == pytest.approx(0.5, abs=0.08)
