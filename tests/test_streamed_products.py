"""Products whose outputs go past the caches, since all of them are written before batch normalisation reads any."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from sparse_programs import (
    Head,
    kernels,  # noqa: F401
    no_rows_roll,  # noqa: F401
    random_masks,
)
from test_sparse_normalisation import SHAPE, program, residual
from torch import nn

import lthfunc as lf
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import COLUMNS, OPCODES, column_of
from lthfunc.sparse.program import Program
from lthfunc.sparse.workspace import Workspace

pytestmark = [
    pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels())),
    pytest.mark.usefixtures("no_rows_roll"),
]


def with_columns(made: Program, where: torch.Tensor, **values: int) -> Program:
    """The program with other columns of some products, told by a mask of instructions."""
    rows = made.code.rows.clone()
    for name, value in values.items():
        rows[where, column_of("products", name)] = value
    return made._replace(code=dataclasses.replace(made.code, rows=rows))


def products_where(made: Program, holds: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> torch.Tensor:
    """A mask of instructions: products whose columns are so."""
    rows = made.code.rows
    by_name = {name: rows[:, column_of("products", name)] for name in COLUMNS["products"]}
    return (rows[:, 0] == OPCODES["products"]) & holds(by_name)


def are_normalised_next(columns: dict[str, torch.Tensor]) -> torch.Tensor:
    return (columns["sums"] >= 0) & (columns["norm"] < 0)


def strided() -> nn.Module:
    """Convolutions of every second place, and one that reads so many channels that its lists are in blocks."""
    layers = (
        nn.Conv2d(3, 40, 3, stride=2, padding=1), nn.BatchNorm2d(40), nn.ReLU(),
        nn.Conv2d(40, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 1, stride=2), nn.BatchNorm2d(4),
    )  # fmt: skip
    return Head(nn.Sequential(*layers), SHAPE)


@pytest.mark.parametrize(("make", "count"), [(lambda: residual(last=1), 5), (strided, 3)])
def test_values_that_go_past_the_caches_have_the_same_bits(make: Callable[[], nn.Module], count: int) -> None:
    module, batch = make(), 40
    made, _ = program(module, batch)
    taken = products_where(made, are_normalised_next)
    assert int(taken.sum()) == count
    strides = made.code.rows[taken][:, column_of("products", "in_x")]
    assert (2 in strides.tolist()) == (make is strided)
    model = lf.from_module(module)
    params, buffers = model.init(0)
    x, y = torch.randn(1, batch, *SHAPE, generator=torch.Generator().manual_seed(1)), torch.zeros(1, batch).long()
    found, threads = [], torch.get_num_threads()
    try:
        for number, each in (
            (1, made),
            (1, with_columns(made, taken, streamed=1)),
            (2, with_columns(made, taken, streamed=1)),
        ):
            torch.set_num_threads(number)
            workspace = Workspace(each, lf.apply_masks(params, random_masks(model, 0.4, 0)), buffers)
            workspace.run(x, y)
            found.append(workspace.gradients)
    finally:
        torch.set_num_threads(threads)
    assert float(found[0].abs().max()) > 0
    assert all(torch.equal(gradients, found[0]) for gradients in found[1:])


@pytest.mark.parametrize(("batch", "streamed"), [(272, 0), (288, 4), (368, 5)])
def test_values_go_past_the_caches_that_they_do_not_fit_in(batch: int, streamed: int) -> None:
    """Outputs of convolutions in front of a normalisation: 46 or, with a halo, 61 kB for sixteen examples, of 1 MB."""
    made, _ = program(residual(), batch)
    past = products_where(made, lambda columns: columns["streamed"] == 1)
    assert int(past.sum()) == streamed
    assert torch.equal(past, past & products_where(made, are_normalised_next))


def test_values_that_are_rectified_before_their_normalisation_stay_in_the_caches() -> None:
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1)
    made, _ = program(Head(nn.Sequential(*layers), SHAPE), 400)
    summed = products_where(made, are_normalised_next)
    assert made.code.rows[summed][:, column_of("products", "relu")].tolist() == [1]
    assert not bool(products_where(made, lambda columns: columns["streamed"] == 1).any())
    assert made.code.verified


def test_products_that_cannot_be_streamed_or_added_are_refused() -> None:
    made, _ = program(residual(), 40)
    every = products_where(made, lambda columns: columns["in"] >= 0)
    across = products_where(made, lambda columns: columns["across"] > 0)
    added = products_where(made, lambda columns: columns["accumulate"] == 1)
    assert min(int(where.sum()) for where in (every, across, added)) > 0
    for where, value in ((every, -1), (every, 2), (across, 1), (added, 1)):
        with pytest.raises(ValueError, match="streamed: 0, or 1 for what batch normalisation alone reads"):
            _ = with_columns(made, where, streamed=value).code.verified
    with pytest.raises(ValueError, match="accumulate: of a gradient alone"):
        _ = with_columns(made, added, relu=1).code.verified
