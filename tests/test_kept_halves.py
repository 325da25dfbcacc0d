"""Values that several layers read, and their gradients, in 16 bits a number: shortcuts of all kinds."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from half_networks import Round, as_it_is, batch_of, differences, instructions, made_of, of_batches
from sparse_programs import (
    TOLERANCE,
    kernels,  # noqa: F401
    no_rows_roll,  # noqa: F401
)
from torch import Tensor, nn

from lthfunc.sparse import bands
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

SHAPE = (3, 16, 17)


class Shortcut(nn.Module):
    """Three blocks of a ResNet, the second with half the places and more channels. kind: of its shortcut. held, given:
    as those of `Residual`."""

    def __init__(self, kind: str, held: Round = as_it_is, given: Round = as_it_is) -> None:
        super().__init__()
        self.kind, self.held, self.given = kind, held, given
        sizes = [(3, 4, 1), (4, 4, 1), (4, 6, 2), (6, 6, 1), (6, 6, 1), (6, 6, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride, padding=1, bias=False) for i, o, stride in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outs) for _, outs, _ in sizes)
        if kind == "projected":
            self.projection, self.norm = nn.Conv2d(4, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        held, given = self.held, self.given

        def normal(number: int, x: Tensor) -> Tensor:
            x = self.convs[number](x)
            found: Tensor = self.norms[number](x if number == 2 else held(x))  # outputs with a stride are whole
            return found

        def kept(x: Tensor) -> Tensor:
            return given(held(x))

        x = kept(F.relu(normal(0, x)))
        x = kept(F.relu(normal(1, x) + x))
        # What is read last has the part of the gradient that is written first, and rounded alone.
        main = x
        if self.kind == "joined":
            shortcut = torch.cat((x[:, 2:, ::2, ::2], x[:, :, 1::2, ::2]), 1)
            main = given(x)
        y = normal(3, F.relu(given(normal(2, main))))
        if self.kind == "padded":
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, 2))
        elif self.kind == "projected":
            shortcut = self.norm(self.projection(given(x)))
        x = kept(F.relu(y + kept(shortcut)))
        x = F.relu(normal(5, F.relu(given(normal(4, x)))) + given(x))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


@pytest.mark.parametrize("kind", ["padded", "joined", "projected"])
def test_gradients_are_those_of_a_network_that_rounds_alike(kind: str) -> None:
    def made(held: Round, given: Round) -> nn.Module:
        return Shortcut(kind, held, given)

    losses, close = of_batches(made, SHAPE)
    assert statistics.median(losses) <= 1e-6, losses
    assert sorted(losses)[-2] <= 1e-5, losses
    assert min(close) <= TOLERANCE, close
    assert statistics.median(close) <= 1e-3, close
    assert max(differences(made, as_it_is, as_it_is, 0, SHAPE)[1].values()) > 0.01


@pytest.mark.parametrize("kind", ["padded", "joined", "projected"])
@pytest.mark.usefixtures("no_rows_roll")
def test_shortcuts_are_held_in_half(kind: str) -> None:
    program, *_ = made_of(Shortcut(kind), SHAPE, 20)
    # All blocks' values but the last one's, and what is added: its mean is taken, which reads whole numbers alone.
    normalised = instructions(program, "normalise")
    assert [row["b_half"] for row in normalised if row["b"] >= 0] == [1, 1, 1]
    assert [row["out_half"] for row in normalised if row["b"] >= 0] == [1, 1, 0]
    parts = {"padded": 1, "joined": 2, "projected": 0}[kind]
    copies = [(row["in_half"], row["out_half"]) for row in instructions(program, "copy")]
    assert copies.count((1, 1)) == 2 * parts  # there and back: gradients of shortcuts are those of blocks, not copies
    assert len(instructions(program, "rectify")) == (kind == "joined")
    assert all(row["out_half"] for name in ("rectify", "fill") for row in instructions(program, name))
    assert [row["grad_half"] for row in instructions(program, "normalise_gradient")].count(0) == 1


@pytest.mark.parametrize("kind", ["padded", "projected"])
@pytest.mark.usefixtures("no_rows_roll")
def test_bands_read_what_is_held_in_half(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    x, y = batch_of(SHAPE, 20)
    for size in (1, 2**30):
        monkeypatch.setattr(bands, "_BAND_BYTES", size)
        program, workspace, _ = made_of(Shortcut(kind), SHAPE, 20)
        workspace.run(x[None], y[None])
        assert any(row["goes_on"] for row in instructions(program, "products")) is (size == 1)
        found.append(workspace.dense(workspace.gradients))
    for name, wanted in found[1].items():
        assert torch.allclose(found[0][name], wanted, rtol=0, atol=2e-6 * float(wanted.abs().max())), name
