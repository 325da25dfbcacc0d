"""Values and gradients in 16 bits a number: against networks in float64 that round the same tensors."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from half_networks import (
    BATCH,
    SHAPE,
    Residual,
    Rounded,
    RoundedGradient,
    as_it_is,
    batch_of,
    differences,
    instructions,
    made_of,
    of_batches,
)
from sparse_programs import (
    TOLERANCE,
    kernels,  # noqa: F401
    no_rows_roll,  # noqa: F401
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse import half_buffers
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES, column_of
from lthfunc.sparse.program import Epilogue
from lthfunc.sparse.workspace import Workspace
from lthfunc.trees.types import Dataset, TrainState

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


# Rows of one block of inputs, and of several. Few sums lie so close between two numbers of 16 bits that they go the
# other way, and fewer of those open a gate of ReLU: the least of some batches, and their median.
@pytest.mark.parametrize(("channels", "least", "median"), [(4, TOLERANCE, 1e-4), (16, 6e-4, 1e-3)])
def test_gradients_are_those_of_a_network_that_rounds_alike(channels: int, least: float, median: float) -> None:
    made = functools.partial(Residual, channels)
    losses, close = of_batches(made)
    assert statistics.median(losses) <= 1e-6, losses
    assert sorted(losses)[-2] <= 1e-5, losses
    assert min(close) <= least, close
    assert statistics.median(close) <= median, close
    # 8 bits of a number explain what is left, of values and of gradients.
    for held, given, more in ((as_it_is, RoundedGradient.apply, 0.03), (Rounded.apply, as_it_is, 1.5e-3)):
        loss, leaves = differences(made, held, given)
        assert loss < 1e-2
        assert more < max(leaves.values()) < 0.5


@pytest.mark.usefixtures("no_rows_roll")
def test_what_is_held_in_half_and_what_is_not() -> None:
    program, *_ = made_of(Residual(), SHAPE, BATCH)
    products = [row for row in instructions(program, "products") if not row["across"]]
    forward, backward = ([row for row in products if (row["which"] >= 0) is behind] for behind in (False, True))
    # Of the forward products the four without a stride; of the backward ones all, those with a stride in four parts.
    assert [row["out_half"] for row in forward] == [1, 1, 1, 1, 0]
    assert [row["out_half"] for row in backward] == [1] * 7
    assert [row["norm_half"] for row in backward] == [0] * 4 + [1] * 3
    assert [row["in_half"] for row in instructions(program, "normalise_gradient")] == [0, 1, 1, 1, 1]
    assert [row["grad_half"] for row in instructions(program, "normalise_gradient")] == [0, 1, 1, 1, 1]
    # What is read twice or with a stride is kept, but what one convolution reads is in local memory, there again.
    normalised = instructions(program, "normalise")
    assert [row["out_half"] for row in normalised] == [1, 0, 1, 1, 0, 0]
    assert [row["b_half"] for row in normalised] == [0, 0, 1, 0, 0, 0]
    assert [(row["in_half"], row["out_half"]) for row in instructions(program, "copy")] == [(1, 0)] * 6
    whole, *_ = made_of(Residual(), SHAPE, BATCH, precision="fp32")
    flags = [f"{name}_half" for name in ("in", "out", "norm", "grad")]
    for name in ("products", "normalise", "normalise_gradient", "gradient_sums", "copy"):
        assert not any(row.get(flag) for row in instructions(whole, name) for flag in flags)
    assert program.code.vectors < 0.85 * whole.code.vectors
    # Few places stay in a cache.
    small, *_ = made_of(Residual(), (3, 7, 9), BATCH)
    assert not any(row["out_half"] for row in instructions(small, "products"))


class Read(nn.Module):
    """A convolution's output that normalisation reads, and something else."""

    def __init__(self, other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(4, 3)
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        found: Tensor = self.head((self.norm(x) + self.other(x)).mean((2, 3)))
        return found


def test_a_value_that_anything_else_reads_is_whole() -> None:
    for other in (torch.sigmoid, as_it_is, lambda x: x[:, :, :1, :1]):
        program, workspace, _ = made_of(Read(other), SHAPE, BATCH)
        assert not any(row["out_half"] for row in instructions(program, "products"))
        x, y = batch_of(SHAPE, BATCH)
        workspace.run(x[None], y[None])
        assert bool(workspace.gradients.isfinite().all())


class Held(nn.Module):
    """An image as 16 bits hold it: normalisation by a mean of zero and a variance of one changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=1e-30, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        found: Tensor = self.norm(self.conv(x)).flatten(1)
        return found


def test_numbers_are_rounded_to_the_nearest_even_one() -> None:
    ulp = 2.0**-7
    ties = [1 + ulp / 2, 1 + 3 * ulp / 2, -1 - ulp / 2, -1 - 3 * ulp / 2]
    beside = [each * (1 + side * 2.0**-23) for each in ties for side in (-1, 1)]
    odd = [0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 3.3895e38, 1e-39, -1e-42, 1.17549435e-38]
    generator = torch.Generator().manual_seed(0)
    known = torch.tensor(ties + beside + odd)
    x = torch.cat([known, torch.randn(16 * 64 - len(known), generator=generator).exp2() * 1e3]).view(16, 1, 8, 8)
    _, workspace, _ = made_of(Held(), (1, 8, 8), 16, density=1.1, epilogue=Epilogue(None))
    workspace.values.fill_(1.0)
    workspace.run(x[None], torch.zeros(1, 16).long(), within=(0, workspace.program.forward))
    found = workspace.outputs.view(16, 64)
    wanted = x.bfloat16().float().flatten(1)
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found[~found.isnan()], wanted[~wanted.isnan()])


def test_any_number_of_threads_has_the_same_bits_past_the_caches_or_not() -> None:
    x, y = batch_of((3, 24, 24), BATCH)
    found, threads = [], torch.get_num_threads()
    try:
        for count, streamed in ((1, None), (2, None), (1, 0), (1, 1), (2, 1)):
            torch.set_num_threads(count)
            program, workspace, params = made_of(Residual(8), (3, 24, 24), BATCH)
            if streamed is not None:
                rows = program.code.rows
                normalised = (rows[:, column_of("products", "sums")] >= 0) & (
                    rows[:, column_of("products", "norm")] < 0
                )
                taken = (rows[:, 0] == OPCODES["products"]) & normalised
                assert bool((rows[taken, column_of("products", "out_half")] == 1).any())
                rows[taken, column_of("products", "streamed")] = streamed
                model = lf.from_module(Residual(8), warn=False)
                workspace = Workspace(program, params, model.init(0)[1])
            workspace.run(x[None], y[None])
            found.append(workspace.gradients)
    finally:
        torch.set_num_threads(threads)
    assert float(found[0].abs().max()) > 0
    assert all(torch.equal(each, found[0]) for each in found[1:])


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("products", "out_half", 2, "out_half: 0, or 1"),
        ("products", "norm_half", 2, "half: 0 or 1"),
        ("normalise", "in_half", -1, "half: 0 or 1"),
        ("normalise", "out_half", 2, "half: 0 or 1"),
        ("normalise", "b_half", 2, "half: 0 or 1"),
        ("normalise", "out", "end", "out reaches outside"),
        ("normalise", "b", "end", "b reaches outside"),
        ("copy", "in_half", 2, "half: 0 or 1"),
        ("copy", "in", "end", "in reaches outside"),
        ("copy", "in", "local", "in reaches outside"),
        ("normalise_gradient", "grad_half", 3, "half: 0 or 1"),
        ("normalise_gradient", "in", "end", "in reaches outside"),
        ("products", "out", "end", "out reaches outside"),
        ("products", "out", "local", "out reaches outside"),
    ],
)
@pytest.mark.usefixtures("no_rows_roll")
def test_places_outside_are_refused(name: str, column: str, value: int | str, said: str) -> None:
    program, *_ = made_of(Residual(), SHAPE, BATCH)
    rows = program.code.rows.clone()
    half = column_of(name, column if column.endswith("_half") else f"{column}_half")
    row = next(row for row in rows if row[0] == OPCODES[name] and row[half] == 1)
    ends = {"end": 2 * program.code.vectors - 1, "local": 2 * (program.code.vectors - 3 * program.code.local) - 8}
    row[column_of(name, column)] = ends[value] if isinstance(value, str) else value
    with pytest.raises(ValueError, match=said):
        _ = dataclasses.replace(program.code, rows=rows).verified


def test_other_layers_are_not_held_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(half_buffers, "_LEAST_PLACES", 1)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 4, 2, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1),
        nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3),
    )  # fmt: skip
    x, y = batch_of((3, 5, 5), 20)
    found = {}
    for precision in ("fp32", "bf16"):
        program, workspace, _ = made_of(module, (3, 5, 5), 20, precision=precision, density=0.6)
        workspace.run(x[None], y[None])
        found[precision] = workspace.gradients.clone()
        assert any(row["out_half"] for row in instructions(program, "products")) is (precision == "bf16")
    assert float(F.cosine_similarity(found["fp32"], found["bf16"], dim=0)) > 0.98


def test_a_training_ends_where_float32_ends_and_resumes_to_the_bit(few_digits: Dataset) -> None:
    model = lf.from_module(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(128, 10),
        ),
        warn=False,
    )  # fmt: skip

    def trained(precision: Any, *steps: int) -> TrainState:
        state = lf.prune(density=0.4, score=lf.random_scores(0))(lf.init(model, 1))
        for until in steps:
            state = lf.train(model, few_digits, optimizer=lf.adam(5e-3), steps=until, seed=1, engine=lf.sparse_engine,
                             precision=precision)(state)  # fmt: skip
        return state

    whole, half, resumed = trained("fp32", 60), trained("bf16", 60), trained("bf16", 25, 60)
    accuracies = [lf.accuracy_on(model, state, few_digits) for state in (whole, half)]
    assert accuracies[1] > accuracies[0] - 0.05
    assert accuracies[0] > 0.7
    assert not torch.equal(whole.params["0.weight"], half.params["0.weight"])
    for name, value in half.params.items():
        assert torch.equal(resumed.params[name], value), name
