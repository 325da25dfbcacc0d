"""Compacted networks compute what whole ones do, whatever masks left dead."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
import torchvision
from networks_with_features import compacted
from torch import Tensor, nn
from torch.func import functional_call

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.models.factory import build
from lthfunc.trees.model import apply_evaluating
from lthfunc.trees.types import Ticket


class Block(nn.Module):
    """Grouped and depthwise convolutions, a residual addition, a concatenation, a channel slice, a gate, a shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8, bias=False)
        self.beside = nn.Conv2d(8, 16, 1)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.strided = nn.Conv2d(24, 12, 3, stride=2, dilation=2, padding=2)
        self.fc1, self.fc2 = nn.Linear(12 * 4 * 4, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = x + self.norm(self.grouped(x))
        y = F.relu_(self.depthwise(y)) + torch.sigmoid(self.beside(x))
        z = torch.cat([y, x], 1)
        z = z.view(z.shape[0], 4, 6, 8, 8).transpose(1, 2).reshape(z.shape[0], 24, 8, 8)
        z = z * torch.sigmoid(self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(z, 1)))))
        z = torch.relu(self.strided(z))
        w = F.pad(z[:, 2:10], (0, 0, 0, 0, 1, 3)) + z
        out: Tensor = self.fc2(torch.tanh(self.fc1(w.flatten(1))))
        return out


#: Networks of every kind of connection; test_architectures.py goes through the rest.
ARCHS = (
    "lenet300", "lenet5", "conv2", "conv4", "conv6", "resnet20", pytest.param("resnet18", marks=pytest.mark.long),
)  # fmt: skip


def broken(model: lf.Model, density: float, seed: int, *, dtype: torch.dtype = torch.float64) -> Ticket:
    """A ticket with random weights and biases everywhere, and masks that leave units dead and unread."""
    draw = torch.Generator().manual_seed(seed)

    def noisy(leaf: Tensor) -> Tensor:
        return (leaf + 0.1 * torch.randn(leaf.shape, generator=draw)).to(dtype) if leaf.is_floating_point() else leaf

    state = lf.init(model, seed)
    params = {name: noisy(leaf) for name, leaf in state.params.items()}
    buffers = {
        name: (leaf + torch.rand(leaf.shape, generator=draw)).to(dtype) if leaf.is_floating_point() else leaf
        for name, leaf in state.buffers.items()
    }
    masks = {}
    for name, mask in state.masks.items():
        keep = torch.rand(mask.shape, generator=draw) < density
        if name != model.prunable[-1]:
            keep[torch.rand(len(keep), generator=draw) < 0.3] = False
        if name != model.prunable[0]:
            keep[:, torch.rand(keep.shape[1], generator=draw) < 0.3] = False
        masks[name] = keep
    return Ticket(lf.apply_masks(params, masks), buffers, masks)


def named(arch: str) -> tuple[lf.Model, tuple[int, ...]]:
    if arch == "block":
        return lf.from_module(Block(), name="block"), (3, 8, 8)
    shape = (1, 28, 28) if arch.startswith("lenet") else (3, 16, 16)
    return build(arch, shape, 10), shape


@pytest.mark.parametrize("selecting", [True, False])
@pytest.mark.parametrize("arch", [*ARCHS, "block"])
@pytest.mark.parametrize("density", [0.5, 0.03])
def test_outputs_are_those_of_the_masked_network(arch: str, density: float, selecting: bool) -> None:
    """float64 to 1e-10 of the largest output, float32 to 1e-5; by functions of trees and as a plain module."""
    model, shape = named(arch)
    if arch == "resnet18" and selecting != (density == 0.5):
        pytest.skip("ResNet-18 takes as long as all others; each density is tried in one way")
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        ticket = broken(model, density, seed=3, dtype=dtype)
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        wanted = functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
        small = compacted(model, ticket, shape, selecting=selecting)
        for got in (
            small.model.evaluating(x),
            functional_call(small.model.evaluating, (small.params, small.buffers), (x,)),
        ):
            assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        pytest.param("densenet121", marks=pytest.mark.long),
        pytest.param("shufflenet_v2_x0_5", marks=pytest.mark.long),
        pytest.param("efficientnet_b0", marks=pytest.mark.long),
        "resnet18",
        pytest.param("regnet_y_400mf", marks=pytest.mark.long),
    ],
)
def test_networks_of_torchvision(name: str) -> None:
    model = lf.from_module(getattr(torchvision.models, name)(num_classes=10), name=name)
    ticket = broken(model, 0.1, seed=0)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    wanted = functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
    small = lf.compact(model, ticket, (3, 40, 40))
    assert float((small.model.evaluating(x) - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())
    assert sum(map(torch.numel, small.params.values())) < 0.6 * sum(map(torch.numel, ticket.params.values()))


class Turned(nn.Module):
    """Channels in another order, of which one part is empty where there is one channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, channels, 3), nn.Linear(channels * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        out: Tensor = self.last(torch.cat([y[:, 1:], y[:, :1]], 1).flatten(1))
        return out


@pytest.mark.parametrize("channels", [1, 6])
def test_a_slice_may_be_empty(channels: int) -> None:
    model = lf.from_module(Turned(channels), name="turned")
    state, x = lf.init(model, 0), torch.randn(2, 3, 6, 6)
    wanted = functional_call(model.evaluating, (state.params, state.buffers), (x,))
    small = compacted(model, lf.ticket(state), (3, 6, 6))
    torch.testing.assert_close(small.model.evaluating(x), wanted)


def test_what_is_dead_is_gone() -> None:
    """A chain of layers, by hand: unit 1 is dead, unit 2 unread, input 0 read by unit 2 alone."""
    model = lf.from_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    first = torch.tensor([[0, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    second = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)
    params = {name: torch.ones_like(leaf) for name, leaf in lf.init(model).params.items()}
    masks = {"0.weight": first, "2.weight": second}
    small = lf.compact(model, Ticket(lf.apply_masks(params, masks), {}, masks), (3,))
    assert {name: tuple(leaf.shape) for name, leaf in small.params.items()} == {
        "0.weight": (2, 2), "0.bias": (2,), "2.weight": (2, 2), "2.bias": (2,)
    }  # fmt: skip
    assert small.params["2.bias"].tolist() == [2, 2]  # the dead unit gave relu(1) to both
    assert isinstance(small.model.evaluating.get_submodule("0"), nn.Linear)
    rows, columns = small.cuts["0.weight"]
    assert rows is not None
    assert columns is not None
    assert (rows.tolist(), columns.tolist()) == ([0, 3], [1, 2])


def test_constants_that_differ_from_place_to_place_are_added_as_they_are() -> None:
    """A dead channel under a padded convolution: the border sees less of its constant."""
    model = lf.from_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1), nn.Flatten()))
    state = lf.init(model)
    masks = {name: mask.clone() for name, mask in state.masks.items()}
    masks["0.weight"][1] = False
    params = lf.apply_masks({**state.params, "0.bias": torch.tensor([0.1, 0.7])}, masks)
    small = lf.compact(model, Ticket(params, {}, masks), (1, 8, 8))
    assert small.params["2.weight"].shape == (3, 1, 3, 3)
    assert [tuple(leaf.shape) for leaf in small.buffers.values()] == [(1, 3, 6, 6)]
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(small.model.evaluating(x), functional_call(model.evaluating, (params, {}), (x,)))


def test_an_operation_that_mixes_all_units_is_given_them_whole() -> None:
    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.scale = nn.Linear(6, 8), nn.Linear(8, 4), nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(torch.relu(self.a(x)).cumsum(1) * self.scale).softmax(1)
            return out

    model = lf.from_module(Mixing())
    ticket = broken(model, 0.4, 0)
    x = torch.randn(5, 6, dtype=torch.float64)
    small = lf.compact(model, ticket, (6,))
    assert small.params["scale"].shape == (8,)
    torch.testing.assert_close(small.model.evaluating(x), functional_call(model.evaluating, (ticket.params, {}), (x,)))


class Folding(nn.Module):
    """Sizes that come from the batch's: its double, its half, one more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(22, 11), nn.Linear(11, 2)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        y = torch.relu(self.fc(x)).view(n * 11, 1).repeat(1, 2).view(n, 22)[:, :11]
        more = torch.cat([y, torch.zeros(n // 2, 11), torch.full((n + 1, 11), 2.0)])
        out: Tensor = self.out(more[:n]) + torch.arange(n).unsqueeze(1) / n
        return out


def test_sizes_that_come_from_the_batch_fit_every_batch() -> None:
    """Layers of the very sizes that the traced batches have."""
    model = lf.from_module(Folding())
    ticket = broken(model, 0.3, 0, dtype=torch.float32)
    small = lf.compact(model, ticket, (22,))
    for examples in (1, 2, 11, 40):
        x = torch.randn(examples, 22)
        wanted = functional_call(model.evaluating, (ticket.params, {}), (x,))
        torch.testing.assert_close(small.model.evaluating(x), wanted, rtol=1e-5, atol=1e-6)


class Mixing(nn.Module):
    """Attention whose heads are joined as a view of a contiguous copy, which a trace may find contiguous already."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(len(x), -1, 2, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        out: Tensor = self.out(y.view(len(x), -1, 8)).mean(1)
        return out


def test_views_fit_whatever_strides_attention_gives() -> None:
    model, x = lf.from_module(Mixing()), torch.randn(7, 5, 8)
    state = lf.prune(density=0.4)(lf.init(model))
    small = lf.compact(model, state, (5, 8))
    found = apply_evaluating(small.model, small.params, small.buffers, x)
    torch.testing.assert_close(found, apply_evaluating(model, state.params, state.buffers, x))


def test_a_network_of_other_operations_on_another_batch_is_refused_with_the_line() -> None:
    class Looping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.fc(row) for row in x])

    class Dividing(Looping):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x) * (len(x) ** 0.5)
            return out

    with pytest.raises(UserError, match=r"Looping cannot be compacted: its operations depend on the batch size"):
        lf.compact(model := lf.from_module(Looping()), lf.init(model), (4,))
    with pytest.raises(UserError, match=r"Dividing cannot be compacted: mul depends .* \(line \d+ of .*test_compact"):
        lf.compact(model := lf.from_module(Dividing()), lf.init(model), (4,))


def test_a_ticket_of_another_network_names_the_first_leaf_that_differs() -> None:
    model, other = lf.models.lenet300((1, 8, 8)), lf.models.lenet300((1, 28, 28))
    words = "ticket and the model lenet300 are of different networks: fc1.weight is (300, 784) and (300, 64)"
    with pytest.raises(UserError, match=f"^compact: {re.escape(words)}$"):
        lf.compact(model, lf.init(other), (1, 8, 8))
