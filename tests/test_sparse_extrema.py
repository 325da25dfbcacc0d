"""The larger of two values and the largest of some dimensions on the sparse engine, against PyTorch's and float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sparse_programs import Head, check, check_inference, kernels  # noqa: F401
from test_sparse_functions import Through, values_and_slopes
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "larger": lambda x: torch.maximum(x, x.flip(3)), "smaller": lambda x: torch.minimum(x.flip(2), 1 - x),
    "larger than one row": lambda x: torch.maximum(x[:, :, 1:2], x), "itself": lambda x: torch.minimum(x, x),
    "larger than a number": lambda x: torch.maximum(x, torch.tensor(1.0, dtype=x.dtype)),
    "number first": lambda x: torch.minimum(torch.tensor(0.0, dtype=x.dtype), x.transpose(1, 3)),
    "max of two": lambda x: torch.max(x, -x), "rectified": lambda x: torch.maximum(torch.relu(x), x.flip(2)),
    "image": lambda x: x.amax((2, 3)), "rows": lambda x: x.amax(3, keepdim=True) * x, "columns": lambda x: x.amin(2),
    "channels": lambda x: x.mT.flatten(2).unflatten(1, (1, 1)).amax((1, 2)), "features": lambda x: x.flatten(1).amin(1),
    "first of a row": lambda x: x.max(-1).values, "last dimensions": lambda x: x.transpose(1, 3).max(2, True)[0],
    "least of features": lambda x: x.flatten(1).min(1, keepdim=True).values, "everything": lambda x: x.amax((1, 2, 3)),
    "rectified maxima": lambda x: torch.relu(x).amax((2, 3)) + torch.relu(x).max(2).values.sum(2),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("odd", [(), (math.nan, math.inf, -math.inf)], ids=["numbers", "odd numbers"])
def test_equal_numbers_share_gradients_as_in_pytorch(name: str, odd: tuple[float, ...]) -> None:
    """Most windows have their maximum several times."""
    draw = torch.Generator().manual_seed(1)
    x = torch.tensor([-1.0, 0.0, 1.0, *odd])[torch.randint(0, 3 + len(odd), (19, 1, 4, 6), generator=draw)]
    net = Through(FUNCTIONS[name])
    found = values_and_slopes(lf.sparse_module(net, {}), x)
    for ours, theirs in zip(found, values_and_slopes(net.double(), x.double()), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-6, atol=1e-6, equal_nan=True)


class Larger(nn.Module):
    """Than a parameter and a buffer that are broadcast."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.channel = nn.Conv2d(2, 3, 1), nn.Parameter(torch.randn(3, 1, 1))
        self.places = nn.Parameter(torch.randn(12))
        self.register_buffer("row", torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.minimum(torch.maximum(self.channel, self.conv(x)), self.get_buffer("row"))
        return torch.maximum(x.flatten(2), self.places)


@pytest.mark.parametrize("batch", [3, 16, 21])
def test_parameters_and_buffers(batch: int) -> None:
    check(Head(Larger(), (2, 3, 4)), (2, 3, 4), batch, density=0.7)
    check_inference(Head(Larger(), (2, 3, 4)), (2, 3, 4), batch)


@pytest.mark.parametrize("examples", [8, pytest.param(100, marks=pytest.mark.long)])
def test_any_dimensions(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        size=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 18)),
        dims=st.lists(st.integers(1, 3), min_size=1, max_size=3, unique=True),
        order=st.permutations([1, 2, 3]),
        kind=st.sampled_from(["amax", "amin", "max", "min"]),
        keep=st.booleans(),
        batch=st.sampled_from([1, 5, 16, 21]),
    )
    def holds(
        size: tuple[int, int, int], dims: list[int], order: list[int], kind: str, keep: bool, batch: int
    ) -> None:  # fmt: skip
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.conv = nn.Conv2d(size[0], size[0], 1)

            def forward(self, x: Tensor) -> Tensor:
                x = self.conv(x).permute(0, *order)
                if kind in ("amax", "amin"):
                    found = getattr(x, kind)([dim - 4 for dim in dims], keep)
                else:
                    found = getattr(x, kind)(dims[0], keep)[0]
                return torch.cat([found.reshape(len(x), -1), x.flatten(1)], 1)

        check(Head(Net(), size), size, batch, density=0.8)
        check_inference(Head(Net(), size), size, batch)

    holds()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x + x.amax(), "amax over the batch"),
        (lambda x: x + x.max(0).values, "max over the batch"),
        (lambda x: x + x.max(2, True).indices, "number 1, which the machine does not hand on,"),
    ],
)
def test_refusals(function: Callable[[Tensor], Tensor], words: str) -> None:
    model = lf.from_module(Head(Through(function), (1, 2, 3)))
    with pytest.raises(lf.UserError, match=f"no rule for .*{words}"):
        lf.sparse_program(model, lf.init(model))(torch.zeros(1, 1, 2, 3))
