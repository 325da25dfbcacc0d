"""Compacted networks compute what whole ones do, in evaluation and in training, whatever masks left dead."""

from __future__ import annotations

import re
from typing import Any

import optree
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import DroppingNet, NormedNet, with_splits
from torch import Tensor, nn
from torch.func import functional_call

import lthfunc as lf
from lthfunc.deployment.compaction.compact import compact_training, cut, left_out
from lthfunc.deployment.compaction.compact_engine import compact_engine
from lthfunc.errors import UserError
from lthfunc.models.factory import build
from lthfunc.sparse.kernels import build as kernels
from lthfunc.trees.types import Dataset, Ticket, TrainState


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
ARCHS = ("lenet300", "lenet5", "conv2", "conv4", "conv6", "resnet20", "resnet18")


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
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        ticket = broken(model, density, seed=3, dtype=dtype)
        x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        wanted = functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
        small = lf.compact(model, ticket, shape, selecting=selecting)
        for got in (
            small.model.evaluating(x),
            functional_call(small.model.evaluating, (small.params, small.buffers), (x,)),
        ):
            assert float((got - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize(
    "name", ["mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "efficientnet_b0", "resnet18", "regnet_y_400mf"]
)
def test_networks_of_torchvision(name: str) -> None:
    model = lf.from_module(getattr(torchvision.models, name)(num_classes=10), name=name)
    ticket = broken(model, 0.1, seed=0)
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    wanted = functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
    small = lf.compact(model, ticket, (3, 40, 40))
    assert float((small.model.evaluating(x) - wanted).abs().max()) <= 1e-10 * float(wanted.abs().max())
    assert sum(map(torch.numel, small.params.values())) < 0.6 * sum(map(torch.numel, ticket.params.values()))


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
            self.a, self.norm, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.b(self.norm(torch.relu(self.a(x)))).softmax(1)
            return out

    model = lf.from_module(Mixing())
    ticket = broken(model, 0.4, 0)
    x = torch.randn(5, 6, dtype=torch.float64)
    small = lf.compact(model, ticket, (6,))
    assert small.params["norm.weight"].shape == (8,)
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

    with pytest.raises(UserError, match=r"Looping cannot be compacted: which operations .* depends on the size of the"):
        lf.compact(model := lf.from_module(Looping()), lf.init(model), (4,))
    with pytest.raises(UserError, match=r"Dividing cannot be compacted: mul depends .* \(line \d+ of .*test_compact"):
        lf.compact(model := lf.from_module(Dividing()), lf.init(model), (4,))


def test_a_ticket_of_another_network_names_the_first_leaf_that_differs() -> None:
    model, other = lf.models.lenet300((1, 8, 8)), lf.models.lenet300((1, 28, 28))
    words = "ticket and the model lenet300 are of different networks: fc1.weight is (300, 784) and (300, 64)"
    with pytest.raises(UserError, match=f"^compact: {re.escape(words)}$"):
        lf.compact(model, lf.init(other), (1, 8, 8))


def dead_start(model: lf.Model, density: float) -> TrainState:
    """A ticket at its initial weights with dead and unread units."""
    masks = broken(model, density, seed=1).masks
    state = lf.init(model, 0)
    return state._replace(masks=masks, params=lf.apply_masks(state.params, masks))


OPTIMIZERS = {
    "adam": lf.adam(1e-3),
    "adam, decay": lf.adam(1e-3, weight_decay=1e-2),
    "adamw, warm-up": lf.adamw(lf.warmup(lf.constant(1e-3), 5), weight_decay=1e-1),
    "momentum, decay": lf.sgd(0.02, momentum=0.9, weight_decay=1e-2),
    "nesterov, cosine": lf.sgd(lf.cosine(0.02, 40), momentum=0.9, nesterov=True, weight_decay=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_compact_is_training_whole(few_digits: Dataset, optimizer: str) -> None:
    """In float64 to 1e-9 after 40 steps in two parts, params, moments, buffers and all, BatchNorm included."""
    for model in (lf.models.lenet300((1, 8, 8)), lf.from_module(NormedNet())):
        start = dead_start(model, 0.1)
        params, buffers = (
            {k: v.double() if v.is_floating_point() else v for k, v in tree.items()} for tree in start[:2]
        )
        start = start._replace(params=params, buffers=buffers)
        data = with_splits(few_digits, lambda split: split._replace(x=split.x.double()))
        found = []
        for engine in ("eager", compact_engine("eager")):
            trainer = lf.make_trainer(model, data, optimizer=OPTIMIZERS[optimizer], batch_size=20, engine=engine)
            state, _ = lf.take_steps(trainer, start, seed=0, until=15)
            found.append(lf.take_steps(trainer, state, seed=0, until=40))
        (whole, loss), (expanded, small_loss) = found
        assert small_loss == pytest.approx(loss, abs=1e-9)
        assert int(expanded.step) == 40
        kept = compact_training(model, start, (1, 8, 8)).cuts
        for name, leaf in whole.params.items():
            torch.testing.assert_close(expanded.params[name], leaf, rtol=0, atol=1e-9)
        for name, leaf in cut(whole.buffers, kept).items():
            torch.testing.assert_close(cut(expanded.buffers, kept)[name], leaf, rtol=0, atol=1e-9)
        for mine, theirs in zip(optree.tree_leaves(expanded.opt), optree.tree_leaves(whole.opt), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


class Added(nn.Module):
    """A rectified value of which the next layer reads more than what the ReLU lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.layer, self.out = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.before(x.flatten(1)))
        found: Tensor = self.out(x + torch.relu(x))
        return found


class Twice(Added):
    """The biases of a layer that is called twice, once rectified and once not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.before(x.flatten(1)))
        found: Tensor = self.out(self.layer(torch.relu(x)))
        return found


@pytest.mark.parametrize("module", [Added, Twice])
def test_a_bias_below_zero_comes_back_where_something_else_trains_it(
    module: type[nn.Module], few_digits: Dataset
) -> None:
    model = lf.from_module(module())
    start = lf.init(model)
    masks = {name: torch.ones_like(mask) for name, mask in start.masks.items()}
    masks["layer.weight"][:8] = False
    params = {**lf.apply_masks(start.params, masks), "layer.bias": torch.full((12,), -1e-3)}
    start = start._replace(params=params, masks=masks)
    whole, small = (
        lf.take_steps(
            lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=20, engine=engine),
            start, seed=0, until=10,
        )[0].params
        for engine in ("eager", compact_engine("eager"))
    )  # fmt: skip
    assert (whole["layer.bias"][:8] > 0).any()
    for name, leaf in whole.items():
        torch.testing.assert_close(small[name], leaf, rtol=1e-4, atol=1e-5)


def test_something_is_left_out_and_moves(few_digits: Dataset) -> None:
    """The test above would pass on networks of which nothing can go."""
    model = lf.models.lenet300((1, 8, 8))
    start = dead_start(model, 0.1)
    small = compact_training(model, start, (1, 8, 8))
    assert small.params["fc1.weight"].shape[0] < 300
    positions = left_out(small, start.params, start.masks)
    assert sum(map(len, positions.values())) > 100
    trainer = lf.make_trainer(
        model, few_digits, optimizer=lf.sgd(0.1, weight_decay=0.1), batch_size=20, engine=compact_engine("eager")
    )
    after, _ = lf.take_steps(trainer, start, seed=0, until=3)
    before = start.params["fc1.weight"].flatten()[positions["fc1.weight"]]
    torch.testing.assert_close(after.params["fc1.weight"].flatten()[positions["fc1.weight"]], before * 0.99**3)


@pytest.mark.parametrize("engine", ["compile", "sparse"])
def test_every_engine_trains_compact(few_digits: Dataset, engine: str) -> None:
    if kernels.why_no_kernels() is not None:
        pytest.skip(str(kernels.why_no_kernels()))
    model = lf.models.lenet300((1, 8, 8))
    start = dead_start(model, 0.1)
    making: Any = lf.sparse_engine if engine == "sparse" else engine
    states = []
    for chosen in ("eager", compact_engine(making, selecting=engine != "sparse")):
        trainer = lf.make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=20, engine=chosen)
        states.append(lf.take_steps(trainer, start, seed=0, until=20)[0])
    for name, leaf in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], leaf, rtol=0, atol=1e-5)
        assert torch.equal(states[1].params[name] * start.masks.get(name, 1), states[1].params[name])


@pytest.mark.skipif(kernels.why_no_kernels() is not None, reason=str(kernels.why_no_kernels()))
def test_residual_networks_train_compact_on_lists(few_digits: Dataset) -> None:
    """Their streams keep all channels, so that both sides of an addition have the same ones."""
    model = lf.models.resnet20((1, 8, 8))
    start = dead_start(model, 0.1)
    small = compact_training(model, start, (1, 8, 8), selecting=False)
    assert small.params["blocks.0.conv1.weight"].numel() < start.params["blocks.0.conv1.weight"].numel()
    found = []
    for engine in (lf.sparse_engine, compact_engine(lf.sparse_engine, selecting=False)):
        trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(1e-3), batch_size=40, engine=engine)
        found.append(lf.take_steps(trainer, start, seed=0, until=4))
    (whole, loss), (expanded, small_loss) = found
    assert small_loss == pytest.approx(loss, rel=1e-4)
    for name, leaf in whole.params.items():
        torch.testing.assert_close(expanded.params[name], leaf, rtol=1e-2, atol=1e-3)


def test_dropout_is_refused(few_digits: Dataset) -> None:
    model = lf.from_module(DroppingNet())
    with pytest.raises(UserError, match="dropout draws for every unit"):
        compact_training(model, lf.init(model), (1, 8, 8))


def test_put_back_is_the_inverse_of_cutting() -> None:
    model, shape = named("block")
    ticket = broken(model, 0.1, 5)
    small = lf.compact(model, ticket, shape)
    mine = {name: leaf for name, leaf in small.params.items() if name in small.cuts}
    again = lf.put_back(ticket.params, {name: leaf + 1 for name, leaf in mine.items()}, small.cuts)
    for name, leaf in mine.items():
        assert torch.equal(cut(again, small.cuts)[name], leaf + 1)
