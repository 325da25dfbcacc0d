"""Parts of parts of images are copied in one go, with the gradients of copies one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import (
    Head,
    check,
    conv,
    kernels,  # noqa: F401
    random_masks,
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.program import Epilogue, Stored, program_of

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

SHAPE = (3, 9, 11)


def shortcut(x: Tensor) -> Tensor:
    """Of a ResNet without weights: every second place, and channels of zeros."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2))


def numbers_around(x: Tensor) -> Tensor:
    return F.pad(x[:, 1:4, 1::3, 2:9:2], (1, 2, 0, 1), value=0.5)


def side_by_side(x: Tensor) -> Tensor:
    return torch.cat([x[:, :, 1:, 2:][:, ::2, ::2, 1:], x[:, :, 1:8:2, 3:]], 1)


def cropped(x: Tensor) -> Tensor:
    return F.pad(F.pad(x, (-2, 0, 0, -1)), (-1, 1, -2, 0))


def read_twice(x: Tensor) -> Tensor:
    part = x[:, :, ::2]
    return torch.cat([part[..., 1:5], torch.sigmoid(part)[..., :4]], 1)


def of_a_whole(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1))[:, :, ::2, ::2]


class Net(nn.Module):
    """What ReLU wrote, read by a function of parts and by a sum, so that gradients are added and gated."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function = conv(), function

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return torch.cat([self.function(x).flatten(1), x.flatten(1)], 1)


class Alone(Net):
    """And by the function alone."""

    def forward(self, x: Tensor) -> Tensor:
        return self.function(torch.relu(self.first(x)))


#: Copies of the function's value; those of parts whose copies other operations read, or that hold zeros, remain.
COPIES: dict[Callable[[Tensor], Tensor], int] = {
    shortcut: 1,
    numbers_around: 1,
    side_by_side: 2,
    cropped: 1,
    read_twice: 3,
    of_a_whole: 2,
}


@pytest.mark.parametrize("function", COPIES, ids=lambda each: each.__name__)
def test_copies_of_copies(function: Callable[[Tensor], Tensor]) -> None:
    for module in (Net(function), Alone(function)):
        check(Head(module, SHAPE), SHAPE)
    model = lf.from_module(Head(Alone(function), SHAPE), warn=False)
    params, buffers = model.init(0)
    program = program_of(
        captured(model, SHAPE, training=True), params, buffers, random_masks(model, 0.4, 0), batch=20,
        stored=Stored(SHAPE, torch.float32), epilogue=Epilogue(None, gradients=False),
    )  # fmt: skip
    assert program.code.rows[:, 0].tolist().count(OPCODES["copy"]) == COPIES[function]
