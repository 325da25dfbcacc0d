"""Batch normalisation that is summed up by who writes its input, and memory that holds one tile at a time."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from sparse_programs import (
    Head,
    check,
    kernels,  # noqa: F401
    no_rows_roll,  # noqa: F401
    random_masks,
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES
from lthfunc.sparse.pages import zeros
from lthfunc.sparse.program import Epilogue, Program, Stored, program_of
from lthfunc.sparse.tile_buffers import LANES
from lthfunc.sparse.workspace import Workspace

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

SHAPE = (3, 10, 18)


class Block(nn.Module):
    """A block of a ResNet whose shortcut is the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


def residual(channels: int = 4, last: int = 3) -> nn.Module:
    """last: the kernel of the layer behind the blocks; 1 reads no halo, so that both ends of a shortcut differ."""
    first = nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
    blocks = Block(channels), Block(channels)
    return Head(nn.Sequential(*first, *blocks, nn.Conv2d(channels, 2, last, padding=last // 2)), SHAPE)


def program(module: nn.Module, batch: int, shape: tuple[int, ...] = SHAPE) -> tuple[Program, Workspace]:
    model = lf.from_module(module)
    params, buffers = model.init(0)
    masks = random_masks(model, 0.4, 0)
    made = program_of(
        captured(model, shape, training=True), lf.apply_masks(params, masks), buffers, masks, batch=batch,
        stored=Stored(shape, torch.float32), epilogue=Epilogue(),
    )  # fmt: skip
    return made, Workspace(made, lf.apply_masks(params, masks), buffers)


def counts(made: Program) -> dict[str, int]:
    opcodes = made.code.rows[:, 0].tolist()
    return {name: opcodes.count(number) for name, number in OPCODES.items()}


@pytest.mark.parametrize("batch", [5, 16, 40])
def test_residual_blocks(batch: int) -> None:
    check(residual(), SHAPE, batch)


def test_a_shortcut_between_values_of_other_layouts() -> None:
    check(residual(last=1), SHAPE, 40)


@pytest.mark.usefixtures("no_rows_roll")
def test_memory_is_read_no_more_often_than_needed() -> None:
    """Sums are taken by products, a gradient that goes on as it is has no copy, and what one layer reads is local."""
    made, _ = program(residual(), 40)
    found = counts(made)
    assert found["batch_statistics"] == found["gradient_means"] == 5
    assert (found["value_sums"], found["gradient_sums"], found["copy"]) == (0, 0, 0)
    assert found["normalise"] == 5 + 2  # the values inside the blocks once more, for gradients
    # Vectors: a value and a gradient with a halo, and the first layer's gradient, of which nobody reads a halo.
    assert made.code.local == 2 * 4 * 12 * 20 + 4 * 10 * 18


def columns(made: Program, name: str) -> list[dict[str, int]]:
    rows = made.code.rows.tolist()
    return [dict(zip(COLUMNS[name], row[4:], strict=False)) for row in rows if row[0] == OPCODES[name]]


def test_a_value_that_is_handed_out_or_read_twice_is_kept() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.conv2, self.conv3 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn(self.conv1(x)))
            found: Tensor = self.conv2(x) + torch.tanh(self.conv3(x))
            return found

    made, _ = program(Head(Twice(), SHAPE), 20)
    assert counts(made)["normalise"] == 1
    check(Head(Twice(), SHAPE), SHAPE)
    last = nn.Sequential(nn.Conv2d(3, 3, (10, 18)), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())
    made, _ = program(last, 20)
    assert columns(made, "normalise")[0]["out_tile"] > 0


@pytest.mark.filterwarnings("ignore:sparse_module")
def test_a_normalised_value_that_another_part_of_the_network_reads_is_kept() -> None:
    """A convolution reads it, and so does an operation that PyTorch computes."""

    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)
            self.last = nn.BatchNorm2d(2)  # for which the machine waits for all tiles, before values are handed out

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn(self.conv1(x)))
            found: Tensor = self.last(self.conv2(x)).mean((2, 3)) + x.cumsum(3)[:, :2, 0, -1]
            return found

    dense = Outside()
    masks = random_masks(lf.from_module(Outside()), 0.4, 0)
    with torch.no_grad():
        for name, mask in masks.items():
            dense.get_parameter(name).mul_(mask)
    sparse = lf.sparse_module(copy.deepcopy(dense), masks)
    x = torch.randn(40, *SHAPE, generator=torch.Generator().manual_seed(0))
    ours, theirs = x.clone().requires_grad_(), x.double().requires_grad_()
    outputs, expected = sparse(ours), dense.double()(theirs)
    assert torch.allclose(outputs.double(), expected, rtol=1e-4, atol=1e-5)
    (outputs**2).sum().backward()
    (expected**2).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-4 * float(theirs.grad.abs().max()))


def test_a_gradient_that_is_owed_is_paid_before_it_is_read() -> None:
    """What is added comes after the layer whose normalisation adds it: its gradient is asked for in between."""

    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
            self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            a = self.conv1(x)
            b = F.relu(self.bn2(self.conv2(x)))
            return F.relu(self.bn1(a) + b) + torch.sigmoid(b)

    check(Head(Later(), SHAPE), SHAPE)


@pytest.mark.usefixtures("no_rows_roll")
def test_gradients_are_written_where_values_were_read_for_the_last_time() -> None:
    made, _ = program(residual(), 40)
    normalised = {row["in"] for row in columns(made, "normalise_gradient")}
    behind = [row for row in columns(made, "products") if row["norm"] >= 0]
    assert len(behind) == 5
    assert sum(row["out"] in normalised for row in behind) == 2  # of the values inside the blocks


@pytest.mark.parametrize("count", [3, 3 << 20])
def test_memory_of_any_size_is_zeros(count: int) -> None:
    memory = zeros(count)
    assert memory.shape == (count,)
    assert memory.dtype == torch.float32
    assert memory.data_ptr() % 64 == 0
    assert float(memory.abs().max()) == 0
    memory[-1] = 2.0
    assert float(memory.sum()) == 2.0


@pytest.mark.parametrize("batch", [40, 33])
def test_a_large_mean_does_not_cost_digits(batch: int) -> None:
    """Means of a thousand times the deviation: the variance of float32 squares would be noise."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, momentum=1.0), nn.ReLU(), nn.Flatten())
    module.append(nn.Linear(4 * 10 * 18, 3))
    made, workspace = program(module, batch)
    leaf = made.leaves["0.bias"]
    workspace.values[leaf.first : leaf.first + leaf.size] = 700.0
    x = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    workspace.run(x[None], torch.zeros(1, batch, dtype=torch.int64))
    weight = workspace.dense(workspace.values)["0.weight"].double()
    outputs = F.conv2d(x.double(), weight, torch.full((4,), 700.0, dtype=torch.float64), padding=1)
    variance = workspace.constants[made.statistics["1.running_var"] :][:4].double()
    assert torch.allclose(variance, outputs.var((0, 2, 3)), rtol=2e-4)
    mean = workspace.constants[made.statistics["1.running_mean"] :][:4].double()
    assert torch.allclose(mean, outputs.mean((0, 2, 3)), rtol=1e-6)


def test_threads_have_local_memory_of_their_own() -> None:
    """The same bits on two threads as on one, of a step that is long enough to be shared."""
    shape, batch, found = (3, 20, 20), 5 * LANES, []
    x = torch.randn(1, batch, *shape, generator=torch.Generator().manual_seed(0))
    body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), Block(16))
    module = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        made, workspace = program(module, batch, shape)
        for step in range(2):
            workspace.run(x, torch.zeros(1, batch, dtype=torch.int64), step=step)
        found.append((workspace.gradients.clone(), workspace.constants.clone()))
        copies = workspace.activations[-4 * made.code.local * LANES :]  # those of tiles behind the first
        assert bool(copies.any()) == (threads == 2)
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert float(found[0][0].abs().max()) > 0
