"""The sparse engine's convolutions against dense float64 ones, over shapes, masks and batches of all kinds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from sparse_programs import (
    TOLERANCE,
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
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.ops import scaled

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    outs=st.integers(1, 20),
    groups=st.sampled_from([1, 1, 2, 3]),
    size=st.tuples(st.integers(3, 12), st.integers(3, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    batch=st.sampled_from([1, 7, 16, 17, 33]),
    density=st.sampled_from([0.0, 0.03, 0.3, 0.8, 1.0]),
    seed=st.integers(0, 5),
)
def test_convolutions(
    channels: int,
    outs: int,
    groups: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    batch: int,
    density: float,
    seed: int,
) -> None:
    ins, outs = channels * groups, outs * groups
    assume(all((k - 1) * dilation + 1 <= side + 2 * p for k, side, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(2, ins, 3, padding=1), nn.Tanh(),
        nn.Conv2d(ins, outs, kernel, stride, padding, dilation, groups, bias=seed % 2 == 0), nn.ReLU(),
    )  # fmt: skip
    check(Head(body, (2, *size)), (2, *size), batch, density, seed)


def one_at_a_time(
    module: nn.Module, shape: tuple[int, ...], density: float, seed: int, *, stored: bool = False
) -> None:
    """An example alone has kernels of its own: as in a batch, and as in float64."""
    model = lf.from_module(module)
    masks = random_masks(model, density, seed)
    params, buffers = model.init(seed)
    params = lf.apply_masks({name: leaf + 0.1 for name, leaf in params.items()}, masks)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, *shape, generator=generator)
    scale = lf.Scale(255, (0.4,), (0.3,)) if stored else None
    if stored:
        x = torch.randint(0, 256, x.shape, generator=generator, dtype=torch.uint8)
    run = lf.sparse_program(model, lf.Ticket(params, buffers, masks), scale)
    together = run(x)
    wide, after = ({name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in tree.items()}
                   for tree in (params, buffers))  # fmt: skip
    expected = apply_evaluating(model, wide, after, scaled(x, scale).double())
    largest = float(expected.abs().max()) + 1e-4
    for number in range(3):
        alone = run(x[number : number + 1])
        assert float((alone[0] - together[number]).abs().max()) <= TOLERANCE * largest
        assert float((alone[0].double() - expected[number]).abs().max()) <= TOLERANCE * largest
    ready: Any = run._ready
    assert all(each.single == (batch[0] == 1) for (batch, _), each in ready.items())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 4),
    outs=st.integers(1, 9),
    groups=st.sampled_from([1, 1, 3]),
    size=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    pool=st.sampled_from([None, "twos", "overlapping", "average"]),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=st.integers(0, 5),
)
def test_one_example_at_a_time(
    channels: int,
    outs: int,
    groups: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    pool: str,
    density: float,
    seed: int,
) -> None:
    ins, outs = channels * groups, outs * groups
    assume(all(k <= side + 2 * p for k, side, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Conv2d(ins, outs, kernel, stride, padding, groups=groups, bias=seed % 2 == 0)]
    layers += [nn.BatchNorm2d(outs)] if seed % 3 == 0 else []
    layers.append(nn.ReLU() if seed % 2 else nn.Tanh())
    after = [(side + 2 * p - k) // s + 1 for side, p, k, s in zip(size, padding, kernel, stride, strict=True)]
    if pool and min(after) >= 3:
        pools = {"twos": nn.MaxPool2d(2), "overlapping": nn.MaxPool2d(3, 2, 1), "average": nn.AvgPool2d(2)}
        layers.append(pools[pool])
    one_at_a_time(Head(nn.Sequential(*layers), (ins, *size)), (ins, *size), density, seed)


@pytest.mark.parametrize("arch", ["lenet300", "lenet5", "conv2", "resnet20"])
def test_one_example_through_networks_of_the_catalogue(arch: str) -> None:
    shape = (1, 28, 28) if arch.startswith("lenet") else (3, 20, 20)
    model = getattr(lf.models, arch)(shape)
    one_at_a_time(model.evaluating, shape, 0.2, 1)
    if arch.startswith("lenet"):
        one_at_a_time(model.evaluating, shape, 0.2, 2, stored=True)


class Adding(nn.Module):
    """Additions that a layer can do as it writes, and some that it can't: of ReLU, of itself, of what comes later."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(4, 4, 3, padding=1, bias=each) for each in (True, False, True))
        self.first, self.short = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1, 2)
        self.norm, self.down, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.norm(self.b(x)) + x)
        y = self.a(x)
        x = y + torch.relu(self.c(x))
        x = torch.relu(self.down(x) + self.short(x))
        z = self.last(x)
        out: Tensor = z + z
        return out


def test_residual_additions_are_done_as_layers_write() -> None:
    torch.manual_seed(0)
    module = Head(Adding(), (3, 12, 20)).eval()
    one_at_a_time(module, (3, 12, 20), 0.5, 3)
    model = lf.from_module(module)
    params, buffers = model.init(0)
    run = lf.sparse_program(model, lf.Ticket(params, buffers, random_masks(model, 1.0, 0)))
    run(torch.randn(20, 3, 12, 20))
    (workspace,) = run._workspaces.values()
    names = [list(OPCODES)[row[0]] for row in workspace.program.code.rows.tolist()]
    assert names.count("add") == 2


def test_an_operation_without_a_kernel_for_one_example_takes_a_tile() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(8, 3)))
    run = lf.sparse_program(model, lf.init(model))
    x = torch.randn(4, 6)
    torch.testing.assert_close(run(x[:1])[0], run(x)[0])
    assert not any(each.single for each in run._ready.values())


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation", "outs"),
    [(6, 5, 0, 1, 4), (7, 5, 1, 1, 4), (4, 5, 2, 1, 4), (20, 5, 0, 1, 4), (9, 3, 0, 2, 4), (10, 5, 0, 1, 32)],
)
@pytest.mark.parametrize("density", [0.1, 1.0])
def test_gradients_beyond_the_border_are_not_computed(
    size: int, kernel: int, padding: int, dilation: int, outs: int, density: float
) -> None:
    body = nn.Sequential(conv(), nn.ReLU(), nn.Conv2d(6, outs, kernel, 1, padding, dilation), nn.ReLU())
    module = Head(body, (3, size, size))
    check(module, (3, size, size), density=density)

    model = lf.from_module(module)
    params, buffers = model.init(0)
    masks = random_masks(model, density, 0)
    code = program_of(
        captured(model, (3, size, size), training=True), params, buffers, masks, batch=20,
        stored=Stored((3, size, size), torch.float32), epilogue=Epilogue(),
    ).code  # fmt: skip
    limits = [
        row[4 + COLUMNS["products"].index("limits")] for row in code.rows.tolist() if row[0] == OPCODES["products"]
    ]
    assert any(limit >= 0 for limit in limits)
