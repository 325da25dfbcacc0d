"""Sums and products that the sparse engine broadcasts, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from sparse_programs import check, kernels  # noqa: F401
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.capture import captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


class Around(nn.Module):
    """A convolution, something done with what it gives, and three classes."""

    scale: Tensor

    def __init__(self, body: Callable[[Around, Tensor, Tensor], Tensor], *, channels: int = 4, size: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.side = nn.Conv2d(2, channels, 3, padding=1), nn.Conv2d(2, channels, 1)
        self.channel = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.number = nn.Parameter(torch.randn(()))
        self.image = nn.Parameter(torch.randn(channels, size, size))
        self.row, self.flat = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(channels * size * size))
        self.register_buffer("scale", torch.randn(channels, 1, 1))
        self.body = body
        with torch.no_grad():
            features = body(self, *self.both(torch.zeros(2, 2, size, size))).flatten(1).shape[1]
        self.head = nn.Linear(features, 3)

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.conv(x)), self.side(x)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self, *self.both(x)).flatten(1))
        return found


BODIES: dict[str, Callable[[Around, Tensor, Tensor], Tensor]] = {
    "product": lambda net, x, y: x * y,
    "quotient": lambda net, x, y: x / (1.5 + y * y),
    "square": lambda net, x, y: x * x + torch.relu(y),
    "gate": lambda net, x, y: x * torch.sigmoid(F.adaptive_avg_pool2d(y, 1)),
    "gate first": lambda net, x, y: torch.relu(y).mean((2, 3), keepdim=True) * x,
    "gate of rows": lambda net, x, y: x * F.adaptive_avg_pool2d(torch.relu(y), (1, 5)),
    "one channel": lambda net, x, y: x * torch.relu(y[:, 1:2]) + y[:, :1],
    "outer": lambda net, x, y: F.adaptive_avg_pool2d(x, (5, 1)) * F.adaptive_avg_pool2d(y, (1, 5)),
    "difference": lambda net, x, y: torch.relu(x - y),
    "alpha": lambda net, x, y: torch.add(x, torch.sub(y, x, alpha=0.5), alpha=3),
    "added gate": lambda net, x, y: torch.relu(x) - F.adaptive_avg_pool2d(y, 1),
    "numbers": lambda net, x, y: 2 - x * 3 + (y - 0.5) / 4 + -y + 1,
    "channels": lambda net, x, y: net.channel * x,
    "parameters": lambda net, x, y: (x * net.channel + net.image) * net.number - net.row,
    "buffer": lambda net, x, y: net.scale * x + y,
    "features": lambda net, x, y: x.mean((2, 3)) * torch.sigmoid(y.mean((2, 3))) + net.number,
    "flattened": lambda net, x, y: x.flatten(1) * y.flatten(1) * net.flat,
    "features of other sides": lambda net, x, y: x.flatten(1) + torch.relu(y.mean((2, 3)).repeat(1, 25)),
    "in place": lambda net, x, y: (x * 1.0).mul_(torch.sigmoid(y)).sub_(y),
}  # fmt: skip


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_broadcasting(body: Callable[[Around, Tensor, Tensor], Tensor]) -> None:
    check(Around(body), (2, 5, 5), batch=19, density=0.5)


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.long)])
def test_broadcasting_of_any_shapes(examples: int) -> None:
    """left, right: along which axes a side has one place alone."""

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(
        size=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 18)),
        left=st.tuples(*[st.booleans()] * 3),
        right=st.tuples(*[st.booleans()] * 3),
        product=st.booleans(),
        batch=st.sampled_from([1, 16, 21]),
    )
    def holds(
        size: tuple[int, int, int],
        left: tuple[bool, bool, bool],
        right: tuple[bool, bool, bool],
        product: bool,
        batch: int,
    ) -> None:
        channels, height, width = size

        def narrowed(x: Tensor, ones: tuple[bool, bool, bool]) -> Tensor:
            x = x[:, :1] if ones[0] else x
            return F.adaptive_avg_pool2d(x, (1 if ones[1] else height, 1 if ones[2] else width))

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                torch.manual_seed(0)
                self.conv, self.side = nn.Conv2d(2, channels, 1), nn.Conv2d(2, channels, 1)
                self.head = nn.LazyLinear(3)

            def forward(self, x: Tensor) -> Tensor:
                a, b = narrowed(torch.relu(self.conv(x)), left), narrowed(torch.tanh(self.side(x)), right)
                found: Tensor = self.head((a * b if product else a - b).flatten(1))
                return found

        net = Net()
        net(torch.zeros(2, 2, height, width))
        check(net, (2, height, width), batch, density=0.8)

    holds()


class Gated(nn.Module):
    """A block with squeeze-and-excite (Hu et al. 2018, sec. 3), shifts and parameters that images share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.image, self.head = nn.Parameter(torch.randn(8, 6, 6)), nn.Linear(8 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.conv(x))
        gate = F.hardsigmoid(self.up(torch.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        found: Tensor = self.head((gate * x + self.image - 0.5).flatten(1))
        return found


def test_pruned_parameters_are_added() -> None:
    """Those that a mask prunes are zeros, and have no gradient."""
    model = lf.from_module(Gated(), prune_only=["image", "conv.weight"])
    assert "image" in model.prunable
    state = lf.prune(density=0.3)(lf.init(model, seed=0))
    assert 0 < int(state.masks["image"].sum()) < state.masks["image"].numel()
    x, y = torch.randn(18, 2, 6, 6), torch.randint(0, 3, (18,))
    program = program_of(
        captured(model, (2, 6, 6), training=True), state.params, state.buffers, state.masks, batch=18,
        stored=Stored((2, 6, 6), torch.float32), epilogue=Epilogue(),
    )  # fmt: skip
    workspace = Workspace(program, state.params, state.buffers)
    workspace.run(x[None], y[None])
    net = Gated().double()
    net.load_state_dict(lf.apply_masks(state.params, state.masks))
    F.cross_entropy(net(x.double()), y).backward()
    for name, leaf in net.named_parameters():
        assert leaf.grad is not None
        expected = leaf.grad * state.masks.get(name, 1)
        torch.testing.assert_close(workspace.dense(workspace.gradients)[name].double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 33])
def test_inference(batch: int) -> None:
    model = lf.from_module(Gated())
    state = lf.prune(density=0.5)(lf.init(model, seed=1))
    run, x = lf.sparse_program(model, state), torch.randn(batch, 2, 6, 6)
    net = Gated().eval()
    net.load_state_dict(lf.apply_masks(state.params, state.masks))
    torch.testing.assert_close(run(x), net(x), rtol=1e-5, atol=1e-5)
    if batch == 1:
        assert next(iter(run._ready.values())).single
