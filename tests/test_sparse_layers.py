"""The sparse engine's layers against dense float64 ones: linear ones, dense products, pooling, activations, norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings, strategies as st
from sparse_programs import (
    Head,
    both,
    check,
    check_inference,
    computed_densely,
    conv,
    kernels,  # noqa: F401
    opcodes_of,
    random_masks,
)
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.kernels.instructions import OPCODES
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    features=st.integers(1, 300),
    hidden=st.integers(1, 70),
    batch=st.sampled_from([1, 5, 16, 60, 64, 130]),
    density=st.sampled_from([0.0, 0.02, 0.3, 0.7, 0.9, 1.0]),
    seed=st.integers(0, 5),
)
def test_linear_layers(features: int, hidden: int, batch: int, density: float, seed: int) -> None:
    module = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.Linear(hidden, 3))
    check(module, (features,), batch, density, seed)


@pytest.mark.parametrize("features", [1, 15, 16, 33, 100])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("batch", [50, 130])
def test_linear_layers_as_dense_products(features: int, density: float, batch: int) -> None:
    module = nn.Sequential(nn.Linear(features, 23), nn.ReLU(), nn.Linear(23, 17), nn.Linear(17, 3))
    with computed_densely():
        check(module, (features,), batch, density, seed=1)
        assert OPCODES["products"] not in opcodes_of(module, (features,), batch, density)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    outs=st.integers(1, 20),
    size=st.tuples(st.integers(3, 12), st.integers(3, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    pool=st.booleans(),
    batch=st.sampled_from([16, 17, 40]),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    small=st.sampled_from([0, 1000]),
    seed=st.integers(0, 5),
)
def test_convolutions_as_dense_ones(
    channels: int,
    outs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    pool: bool,
    batch: int,
    density: float,
    small: int,
    seed: int,
) -> None:
    """Where lists would do, at any density: with maxima in registers, whose gradients are spread out, and without."""
    assume(all((k - 1) * dilation + 1 <= side + 2 * p for k, side, p in zip(kernel, size, padding, strict=True)))
    torch.manual_seed(seed)
    body = nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1), nn.Tanh(),
        nn.Conv2d(channels, outs, kernel, stride, padding, dilation, bias=seed % 2 == 0), nn.ReLU(),
    )  # fmt: skip
    with torch.no_grad():
        after = body(torch.zeros(1, 2, *size)).shape[2:]
    if pool and min(after) > 1:
        body.append(nn.MaxPool2d(2))
    module = Head(body, (2, *size))
    with computed_densely(small=small):
        check(module, (2, *size), batch, density, seed)
        opcodes = opcodes_of(module, (2, *size), batch, density)
    assert OPCODES["dense_convolution_gradients"] in opcodes
    assert OPCODES["weight_gradients"] not in opcodes


@pytest.mark.parametrize("threads", [1, 2])
def test_dense_convolutions_have_the_same_bits_on_any_number_of_threads(threads: int) -> None:
    body = nn.Sequential(nn.Conv2d(3, 18, 3, padding=1), nn.ReLU(), nn.Conv2d(18, 20, 3, padding=1), nn.ReLU())
    module, before = Head(body, (3, 24, 24)), torch.get_num_threads()
    with computed_densely():
        _, expected, *_ = both(module, (3, 24, 24), 40, 0.7)
        try:
            torch.set_num_threads(threads)
            _, found, *_ = both(module, (3, 24, 24), 40, 0.7)
        finally:
            torch.set_num_threads(before)
    for name, gradient in expected.items():
        assert torch.equal(gradient, found[name]), name


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.ELU()])
def test_what_is_no_number_stays_so(activation: nn.Module) -> None:
    """A network that diverges must be seen to."""
    model = lf.from_module(nn.Sequential(nn.Linear(4, 5), activation, nn.Linear(5, 3)))
    params, buffers = model.init(0)
    params = {**params, "0.bias": torch.full((5,), torch.nan)}
    masks = random_masks(model, 0.5, 0)
    program = program_of(
        captured(model, (4,), training=True), params, buffers, masks, batch=20,
        stored=Stored((4,), torch.float32), epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, params, buffers)
    workspace.run(torch.randn(1, 20, 4), torch.zeros(1, 20, dtype=torch.int64))
    assert workspace.totals[0].isnan()


POOLS = [
    nn.MaxPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1), nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.MaxPool2d(2, dilation=2), nn.AvgPool2d(2), nn.AvgPool2d(3, 2), nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, 2)), nn.AvgPool2d(3, 2, 1), nn.AvgPool2d((2, 3), 2, (1, 0), count_include_pad=False),
    nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False), nn.AvgPool2d(3, 2, 1, divisor_override=5),
    nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d((4, 3), (3, 2), (2, 1), ceil_mode=True), nn.ChannelShuffle(3),
    nn.AvgPool2d((3, 4), (2, 3), ceil_mode=True),
    nn.AdaptiveMaxPool2d(1), nn.AdaptiveMaxPool2d((5, 7)), nn.AdaptiveMaxPool2d((None, 2)),
]  # fmt: skip


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Identity()], ids=["relu", "linear"])
def test_pooling(pool: Any, activation: nn.Module) -> None:
    check(Head(nn.Sequential(conv(), activation, pool), (3, 10, 14)), (3, 10, 14))


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Sigmoid(), nn.Tanh(), nn.SiLU(), nn.GELU(), nn.Hardtanh(),
        nn.Hardsigmoid(), nn.Hardswish(), nn.ELU(0.7), nn.ReLU(inplace=True), nn.SiLU(inplace=True),
    ],
    ids=str,
)  # fmt: skip
def test_activations(activation: nn.Module) -> None:
    check(nn.Sequential(nn.Linear(30, 20), activation, nn.Linear(20, 3)), (30,), density=0.8)


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm2d(6), nn.BatchNorm2d(6, affine=False), nn.GroupNorm(3, 6), nn.GroupNorm(1, 6, affine=False)],
    ids=str,
)  # fmt: skip
def test_normalisation_of_images(norm: nn.Module) -> None:
    body = nn.Sequential(conv(), norm, nn.ReLU(), conv(6, 4), nn.MaxPool2d(2))
    check(Head(body, (3, 8, 10)), (3, 8, 10), batch=21)


FLAT = (
    nn.BatchNorm1d(60), nn.GroupNorm(6, 60), nn.LayerNorm(60), nn.LayerNorm(60, elementwise_affine=False),
)  # fmt: skip


@pytest.mark.parametrize("norm", [*FLAT, nn.LayerNorm((4, 3, 5)), nn.LayerNorm((4, 3, 5), bias=False)], ids=str)
@pytest.mark.parametrize("rectified", [False, True])
def test_normalisation_with_a_weight_for_each_place(norm: nn.Module, rectified: bool) -> None:
    """Of an image, or of one that is flattened."""
    with torch.no_grad():
        for leaf in norm.parameters():
            leaf.copy_(torch.rand(leaf.shape) + 0.5)
    flat = norm in FLAT
    steps = [conv(3, 4), *[nn.Flatten()] * flat, norm, *[nn.ReLU()] * rectified, *[nn.Unflatten(1, (4, 3, 5))] * flat]
    check(Head(nn.Sequential(*steps, conv(4, 2)), (3, 3, 5)), (3, 3, 5), batch=21)
    check_inference(Head(nn.Sequential(*steps, conv(4, 2)), (3, 3, 5)), (3, 3, 5))


@pytest.mark.parametrize(
    "norm", [nn.BatchNorm1d(24), nn.LayerNorm(24), nn.LayerNorm(24, elementwise_affine=False)], ids=str
)
def test_normalisation_of_features(norm: nn.Module) -> None:
    check(nn.Sequential(nn.Linear(30, 24), norm, nn.ReLU(), nn.Linear(24, 3)), (30,), batch=21)


class Residual(nn.Module):
    """A value read three times, a strided and padded shortcut, a concatenation, a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = conv(3, 8), conv(8, 8), nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.norm, self.after = nn.BatchNorm2d(8), nn.BatchNorm2d(12)
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.one(x)) + x)
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        y = F.relu(self.after(self.two(x)) + short)
        y = torch.cat([y, 0.5 * F.silu(y)], 1)
        found: Tensor = self.out(y.mean((2, 3)))
        return found


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
def test_residual_networks(density: float) -> None:
    check(Residual(), (3, 8, 10), batch=19, density=density)
