"""Convolutions and pooling of (batch, channels, length) on the sparse engine, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from sparse_programs import Head, check, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.kernels import build
from lthfunc.trees.model import apply_evaluating

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.mark.parametrize("examples", [6, pytest.param(80, marks=pytest.mark.long)])
def test_convolutions(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        channels=st.tuples(st.integers(1, 3), st.integers(1, 4)),
        groups=st.sampled_from([1, 1, 2]),
        length=st.integers(1, 21),
        kernel=st.integers(1, 5),
        stride=st.integers(1, 3),
        padding=st.integers(0, 2),
        dilation=st.integers(1, 2),
        transposed=st.booleans(),
        batch=st.sampled_from([1, 16, 19]),
        density=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def holds(
        channels: tuple[int, int], groups: int, length: int, kernel: int, stride: int, padding: int, dilation: int,
        transposed: bool, batch: int, density: float,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        ins, outs = channels[0] * groups, channels[1] * groups
        after = (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1
        assume(after > 0 if transposed else length + 2 * padding > dilation * (kernel - 1))
        layer: nn.Module = nn.Conv1d(ins, outs, kernel, stride, padding, dilation, groups)
        if transposed:
            layer = nn.ConvTranspose1d(ins, outs, kernel, stride, padding, 0, groups, True, dilation)
        body = nn.Sequential(nn.Conv1d(2, ins, 1), nn.Tanh(), layer, nn.ReLU(), nn.Conv1d(outs, 2, 1))
        check(Head(body, (2, length)), (2, length), batch, density)

    holds()


class Through(nn.Module):
    """A convolution, then a function's code."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.conv, self.norm, self.code = nn.Conv1d(2, 4, 3, padding="same"), nn.BatchNorm1d(4), code
        self.group = nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        found: Tensor = eval(self.code, {"F": F, "torch": torch, "x": x, "norm": self.norm, "group": self.group})
        return found


CODES = [
    "F.max_pool1d(x, 2)", "F.max_pool1d(torch.relu(x), 3, 2, 1)", "F.avg_pool1d(x, 3, 2, 1)",
    "F.adaptive_avg_pool1d(x, 4)", "F.adaptive_max_pool1d(torch.relu(x), 1)",
    "norm(x)", "F.relu(norm(x)) + x", "group(x)", "F.pad(x, (2, 1))", "F.pad(x, (1, 3), mode='reflect')",
    "F.pad(x, (1, -2, 0, 1), value=2.0)", "F.interpolate(x, scale_factor=2)", "F.interpolate(x, size=7, mode='linear')",
    "x * torch.sigmoid(F.adaptive_avg_pool1d(x, 1))", "x * x - x",
]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_what_follows_a_convolution(code: str) -> None:
    check(Head(Through(code), (2, 9)), (2, 9), batch=18, density=0.6)


def test_steps_of_a_transposed_sequence() -> None:
    """(batch, length, channels) turned round, as text is convolved."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.conv, self.head = nn.Linear(3, 5), nn.Conv1d(5, 4, 3), nn.Linear(4 * 6, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(torch.relu(self.conv(torch.tanh(self.first(x)).transpose(1, 2))).flatten(1))
            return found

    check(Net(), (8, 3), 20)


@pytest.mark.parametrize("batch", [1, 17])
def test_inference(batch: int) -> None:
    body = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2), nn.ConvTranspose1d(6, 3, 2))
    model = lf.from_module(Head(body, (2, 10)))
    state, x = lf.prune(density=0.5)(lf.init(model, seed=1)), torch.randn(batch, 2, 10)
    expected = apply_evaluating(model, state.params, state.buffers, x)
    torch.testing.assert_close(lf.sparse_program(model, state)(x), expected, rtol=1e-5, atol=1e-5)
