"""Networks in float64 that round as the engine does where it holds 16 bits a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from sparse_programs import random_masks
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES, column_of
from lthfunc.sparse.machine_code import MachineCode
from lthfunc.sparse.program import Epilogue, Program, Stored, builder_for, program_of
from lthfunc.sparse.workspace import Workspace

#: FEW examples, of as few places as are held so: few of their numbers lie so close between two of 16 bits that the sums
#: that both make of them are rounded apart.
SHAPE, BATCH, SMALL, FEW = (3, 9, 17), 40, (3, 8, 8), 17
Round = Callable[[Tensor], Tensor]


class Rounded(torch.autograd.Function):
    """A value that is held in 16 bits; what is rounded has the gradient of what it was."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.bfloat16().to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class RoundedGradient(torch.autograd.Function):
    """A value whose gradient is held in 16 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.bfloat16().to(grad.dtype)


def as_it_is(x: Tensor) -> Tensor:
    return x


class Residual(nn.Module):
    """Two blocks of a ResNet, the second with a stride. held, given: what is done where the engine rounds values, and
    to values whose gradients it rounds."""

    def __init__(self, channels: int = 4, held: Round = as_it_is, given: Round = as_it_is) -> None:
        super().__init__()
        self.held, self.given = held, given
        self.convs = nn.ModuleList(nn.Conv2d(ins, channels, 3, padding=1, bias=False) for ins in (3, *[channels] * 3))
        self.down = nn.Conv2d(channels, channels, 3, stride=2, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(5))
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        held, given, (a, b, c, d), (n, o, p, q, r) = self.held, self.given, self.convs, self.norms
        x = given(held(F.relu(n(held(a(x))))))  # is read twice, so that it is kept in memory
        y = F.relu(given(o(held(b(x)))))
        x = given(held(F.relu(p(held(c(y))) + x)))
        y = given(held(F.relu(q(held(d(x))))))  # which a convolution with a stride reads
        found: Tensor = self.head(F.relu(r(self.down(y))).mean((2, 3)))
        return found


def made_of(module: nn.Module, shape: tuple[int, ...], batch: int, **given: Any) -> tuple[Program, Workspace, Any]:
    """A program under random masks, its workspace, and the masked params."""
    model = lf.from_module(module, warn=False)
    (params, buffers), masks = model.init(0), random_masks(model, given.pop("density", 0.4), 0)
    params = lf.apply_masks(params, masks)
    program = program_of(
        captured(model, shape, training=True), params, buffers, masks, batch=batch, stored=Stored(shape, torch.float32),
        epilogue=given.pop("epilogue", Epilogue()), builder=builder_for(given.pop("precision", "bf16")),
    )  # fmt: skip
    return program, Workspace(program, params, buffers), params


def batch_of(shape: tuple[int, ...], batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, *shape, generator=generator), torch.randint(0, 3, (batch,), generator=generator)


def instructions(program: Program, name: str) -> list[dict[str, int]]:
    rows = program.code.rows[program.code.rows[:, 0] == OPCODES[name]]
    return [dict(zip(COLUMNS[name], row[4:], strict=False)) for row in rows.tolist()]


def changed(program: Program, name: str, columns: dict[str, Any], *, behind: bool = False) -> MachineCode:
    """The code with other columns of the first such instruction; "end": the last vector. behind: of the first that goes
    on from the rows before."""
    rows = program.code.rows.clone()
    found = rows[:, 0] == OPCODES[name]
    if behind:
        found &= rows[:, column_of(name, "goes_on")] == 1
    row = rows[int(found.nonzero()[0])]
    for column, value in columns.items():
        at = 1 if column == "split" else column_of(name, column)
        row[at] = program.code.vectors - 1 if value == "end" else value
    return dataclasses.replace(program.code, rows=rows)


def on_threads(run: Callable[[], Tensor]) -> list[Tensor]:
    """What it gives on one thread, and on two."""
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(run())
    finally:
        torch.set_num_threads(threads)
    return found


def differences(
    made: Callable[[Round, Round], nn.Module], held: Round, given: Round, seed: int = 0,
    shape: tuple[int, ...] = SMALL,
) -> tuple[float, dict[str, float]]:  # fmt: skip
    """Of the loss and the gradients from those of a network in float64, relative to it and to each leaf's norm."""
    _, workspace, params = made_of(made(as_it_is, as_it_is), shape, FEW)
    x, y = batch_of(shape, FEW, seed)
    workspace.run(x[None], y[None])
    ours = workspace.dense(workspace.gradients)
    reference = made(held, given).double()
    reference.load_state_dict({name: value.double() for name, value in params.items()}, strict=False)
    loss = F.cross_entropy(reference(x.double()), y)
    loss.backward()
    found = {}
    for name, leaf in reference.named_parameters():
        assert leaf.grad is not None
        wanted = leaf.grad * (params[name] != 0) if leaf.ndim > 1 else leaf.grad
        found[name] = float((ours[name] - wanted).norm() / wanted.norm())
    return abs(float(workspace.totals[0]) / loss.item() - 1), found


def of_batches(
    made: Callable[[Round, Round], nn.Module], shape: tuple[int, ...] = SMALL
) -> tuple[list[float], list[float]]:
    """Differences from a network that rounds alike, of some batches: the losses', and the largest of gradients'."""
    found = [differences(made, Rounded.apply, RoundedGradient.apply, seed, shape) for seed in range(5)]
    return [loss for loss, _ in found], [max(leaves.values()) for _, leaves in found]
