"""Many steps a launch on survivors alone, held to torch.optim in float64 and to the CPU's sparse engine."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import DEVICE, drawn
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.gpu.resident import Resident, pack_resident, resident_steps, unpack_resident
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.training.batches import batches
from lthfunc.training.loop import take_steps
from lthfunc.training.trainer import make_trainer
from lthfunc.trees import ops
from lthfunc.trees.types import TrainState

SIZES = (12, 9, 7, 5)
OPTIMIZERS: dict[str, tuple[lf.Optimizer, Any]] = {
    "adam": (lf.adam(0.05, eps=1e-4), lambda p: torch.optim.Adam(p, 0.05, eps=1e-4)),
    "adam, decay": (
        lf.adam(0.05, (0.8, 0.95), 1e-4, 0.1), lambda p: torch.optim.Adam(p, 0.05, (0.8, 0.95), 1e-4, 0.1)
    ),
    "adamw": (lf.adamw(0.05, eps=1e-4), lambda p: torch.optim.AdamW(p, 0.05, eps=1e-4)),
    "sgd": (lf.sgd(0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "momentum, decay": (lf.sgd(0.1, 0.9, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1)),
    "nesterov": (lf.sgd(0.1, 0.9, nesterov=True), lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True)),
}  # fmt: skip


def network(sizes: tuple[int, ...]) -> lf.Model:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return lf.from_module(nn.Sequential(*layers[:-1]))


def masked_states(count: int, sizes: tuple[int, ...] = SIZES) -> list[TrainState]:
    """Of different masks: the first whole, one with rows and columns of nothing, the last with a layer of nothing."""
    model, found = network(sizes), []
    for number in range(count):
        state = lf.init(model, number, DEVICE)
        g, masks = drawn(number), {}
        for name, mask in state.masks.items():
            kept = torch.rand(mask.shape, generator=g) < (0.4 if number else 1.1)
            if number == 1:
                kept[1], kept[:, 2] = False, False
            masks[name] = kept.to(DEVICE)
        if number == 2:
            masks[next(iter(masks))].zero_()
        params = {name: leaf.where(masks[name], 0) if name in masks else leaf for name, leaf in state.params.items()}
        # Biases that nothing tells apart would leave the ReLUs of a layer of nothing at their edge.
        params = {name: leaf + 0.1 if leaf.ndim == 1 else leaf for name, leaf in params.items()}
        found.append(state._replace(params=params, masks=masks))
    return found


def by_torch(state: TrainState, make: Any, x: Tensor, y: Tensor) -> tuple[dict[str, Tensor], list[float]]:
    """(params after a step on each batch, the losses), in float64."""
    params = {name: leaf.double().clone().requires_grad_() for name, leaf in state.params.items()}
    leaves, losses = list(params.values()), []
    optimizer = make(leaves)
    for inputs, targets in zip(x.double(), y, strict=True):
        for number in range(0, len(leaves), 2):
            inputs = F.linear(inputs.relu() if number else inputs, leaves[number], leaves[number + 1])
        loss = F.cross_entropy(inputs, targets)
        for (name, leaf), grad in zip(params.items(), torch.autograd.grad(loss, leaves), strict=True):
            leaf.grad = grad * state.masks[name] if name in state.masks else grad
        optimizer.step()
        losses.append(float(loss.detach()))
    return params, losses


def given(generator: torch.Generator, *shape: int, inputs: int = SIZES[0], classes: int = SIZES[-1]) -> Any:
    x = torch.randn(*shape, inputs, generator=generator).to(DEVICE)
    return x, torch.randint(classes, shape, generator=generator).to(DEVICE)


@pytest.mark.parametrize(
    ("name", "examples"), [(name, 7) for name in OPTIMIZERS] + [("adam", 1), ("momentum, decay", 20)]
)
def test_steps_of_networks_equal_torch_optim(name: str, examples: int) -> None:
    """Of three with their own masks, on their own batches."""
    states, (optimizer, make) = masked_states(3), OPTIMIZERS[name]
    x, y = given(drawn(1), 3, 2, examples)
    resident, losses = resident_steps(pack_resident(states, optimizer), x, y)
    for k, (start, end) in enumerate(zip(states, unpack_resident(resident), strict=True)):
        params, wanted = by_torch(start, make, x[k], y[k])
        torch.testing.assert_close(
            losses[k].double().cpu(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-5, atol=1e-6
        )
        for leaf, expected in params.items():
            torch.testing.assert_close(end.params[leaf].double(), expected.detach(), rtol=2e-5, atol=2e-6)
        for leaf, mask in start.masks.items():
            trees = [end.params, *(getattr(end.opt, tree, {}) for tree in ("mean", "variance", "velocity"))]
            assert not any(tree[leaf][~mask].any() for tree in trees if tree)
        assert int(end.step) == 2


def test_a_training_equals_the_sparse_engines() -> None:
    """On digits; also where it goes on, at other steps of a schedule, and where the batches are all networks'."""
    data = lf.data.load("digits")
    model = network((64, 20, 12, 10))
    optimizer = lf.adam(lf.cosine(0.02, 9), weight_decay=1e-3)
    engine: Any = lf.sparse_engine if why_no_kernels() is None else "eager"
    trainer = make_trainer(model, data, optimizer=optimizer, batch_size=12, engine=engine)
    starts = [lf.prune(density=density)(lf.init(model, 3)) for density in (0.2, 0.1)]
    starts[1], _ = take_steps(trainer, starts[1], seed=0, until=4)
    ready = [(ops.scaled(x, data.scale), y) for x, y in batches(data.train, 12, 0, 4, 7)]
    x, y = (torch.stack(parts).to(DEVICE) for parts in zip(*ready, strict=True))
    starts[0] = starts[0]._replace(step=torch.tensor(4))  # whose moments are fresh
    resident, losses = resident_steps(pack_resident([ops.to_device(each, DEVICE) for each in starts], optimizer), x, y)
    for start, end, loss in zip(starts, unpack_resident(resident), losses, strict=True):
        wanted, mean_loss = take_steps(trainer, start, seed=0, until=7)
        assert float(loss.mean()) == pytest.approx(mean_loss, rel=1e-5)
        assert int(end.step) == 7
        for name, leaf in wanted.params.items():
            torch.testing.assert_close(end.params[name].cpu(), leaf, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(end.opt.mean[name].cpu(), wanted.opt.mean[name], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(end.opt.powers.cpu(), wanted.opt.powers, rtol=0, atol=1e-12)
        torch.testing.assert_close(end.opt.corrections.cpu(), wanted.opt.corrections)


@pytest.mark.parametrize("name", ["adam", "nesterov"])
def test_launches_go_on_from_each_other_and_change_no_argument(name: str) -> None:
    states = masked_states(2, (6, 5, 4))
    x, y = given(drawn(2), 3, 5, inputs=6, classes=4)
    start = pack_resident(states, OPTIMIZERS[name][0])
    copied: Any = ops.clone(tuple(start))
    kept = Resident(*copied)
    whole, losses = resident_steps(start, x, y)
    first, some = resident_steps(start, x[:1], y[:1])
    again = pack_resident(unpack_resident(first), OPTIMIZERS[name][0])
    for mine, theirs in zip((again.values, *again.moments), (first.values, *first.moments), strict=True):
        assert torch.equal(mine, theirs), "what is there for a network with more survivors stays zero"
    parts, rest = resident_steps(again, x[1:], y[1:])
    assert torch.equal(torch.cat([some, rest], 1), losses)
    assert lf.same_bits(unpack_resident(parts)[1].params, unpack_resident(whole)[1].params)
    for leaf, before in zip((start.values, *start.moments), (kept.values, *kept.moments), strict=True):
        assert torch.equal(leaf, before)
    for state, back in zip(states, unpack_resident(start), strict=True):
        assert lf.same_bits(state.params, back.params)
        assert lf.same_bits(state.masks, back.masks)


def test_what_cannot_be_resident_is_told() -> None:
    states, optimizer = masked_states(2), lf.sgd(0.1)
    resident = pack_resident(states, optimizer)
    x, y = given(drawn(3), 2, 4)
    for wrong, words in (
        ((x[..., :-1], y), r"x: takes the shape \(2, 4, 12\), not \(2, 4, 11\)"),
        ((x, y.int()), "y: takes int64, not int32"),
        ((x, y[0]), r"y: takes \(steps, n\) or \(2, steps, n\), not \(4,\)"),
        ((x.double(), y), "x: takes float32, not float64"),
        ((x[:, :0], y[:, :0]), "y: takes batches of 1 to 1024 examples, not 0"),
    ):
        with pytest.raises(UserError, match=words):
            resident_steps(resident, *wrong)
    odd = network((12, 8, 5))
    convolution = lf.from_module(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 5)))
    unbiased = lf.from_module(nn.Sequential(nn.Linear(12, 9, bias=False), nn.ReLU(), nn.Linear(9, 5)))
    for given_states, given_optimizer, words in (
        ([], optimizer, "states: takes one network or more"),
        (states, lf.lion(0.1), "optimizer: takes lf.sgd, lf.adam or lf.adamw"),
        ([*states, lf.init(odd, 0, DEVICE)], optimizer, "states: their networks have different shapes"),
        ([lf.init(convolution)], optimizer, "states: takes float32 linear layers with biases alone"),
        ([lf.init(unbiased)], optimizer, "states: takes float32 linear layers with biases alone"),
        ([lf.init(network((12, 5)))], optimizer, "states: takes networks of two linear layers or more"),
    ):
        with pytest.raises(UserError, match=words):
            pack_resident(given_states, given_optimizer)
