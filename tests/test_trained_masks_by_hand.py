"""Masks that are trained, against trainings in plain PyTorch: torch.optim's SGD and masks by the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from method_plans import plan_for
from test_methods_by_hand import (
    BATCH,
    DENSITY,
    EVERY,
    LAYERS,
    RATE,
    SEED,
    STEPS,
    Setting,
    a_setting,  # noqa: F401
    dense_of,
    outputs,
    quality,
)
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.methods.trained_masks import around, rescaled
from lthfunc.training.batches import batches
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.parametrize import trained_and_fixed, trained_name
from lthfunc.trees.model import apply_evaluating, apply_training
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Masks, Params

BIASES = ("1.bias", "3.bias")


def test_edge_popup_by_hand(setting: Setting) -> None:
    """Ramanujan et al. 2020, sec. 3: constants √(2 / (fan-in · density)) with signs; scores learn, weights don't."""
    params, data = dense_of(setting).params, setting.trainer.data
    signed = {name: params[name].sign() * math.sqrt(2 / (params[name].shape[1] * DENSITY)) for name in LAYERS}
    scores = {}
    for name in LAYERS:
        drawn = torch.rand(params[name].shape, generator=generator(SEED, "popup", name))
        scores[name] = nn.Parameter((2 * drawn - 1) / math.sqrt(params[name].shape[1]))
    counts = {"1.weight": 256, "3.weight": 40}  # a fifth of each layer

    def masked() -> tuple[Params, Masks]:
        tops = {name: leaf.detach().abs().flatten().topk(counts[name]).indices for name, leaf in scores.items()}
        masks = {name: torch.zeros(leaf.numel()).index_fill(0, tops[name], 1) for name, leaf in scores.items()}
        masks = {name: masks[name].view_as(leaf).requires_grad_() for name, leaf in scores.items()}
        return {**params, **{name: signed[name] * masks[name] for name in LAYERS}}, masks

    optimizer = torch.optim.SGD(scores.values(), RATE, momentum=0.9)
    best = math.inf
    chosen: Params = {}
    kept: Masks = {}
    for step in range(STEPS + 1):
        if step % EVERY == 0 and (loss := quality(masked()[0], data.val).loss) < best:
            best, (chosen, kept) = loss, masked()
        if step < STEPS:
            ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
            optimizer.zero_grad()
            network, masks = masked()
            F.cross_entropy(outputs(network, x), y).backward()
            for name, leaf in scores.items():
                leaf.grad = gradient_of(masks[name]) * leaf.detach().sign()
            optimizer.step()
    found = setting.outcome("edge-popup")
    for name, mask in kept.items():
        assert torch.equal(found.ticket.params[name] != 0, mask.bool())
    for name, mask in masked()[1].items():
        assert torch.equal(found.masks[name], mask.bool())  # at the end
    for name, weight in chosen.items():
        torch.testing.assert_close(found.ticket.params[name], weight.detach())
    assert found.test == pytest.approx(quality(chosen, data.test))
    assert found.steps == STEPS


def test_supermasks_by_hand(setting: Setting) -> None:
    """Zhou et al. 2019, sec. 5: drawn in training, the likeliest elsewhere, both times (all / ones) of their layer."""
    found, dense = setting.outcome("supermask"), dense_of(setting).params
    through = setting.plan("supermask").through[0]
    begun = through.begin(dense_of(setting), SEED)
    odds, fixed = trained_and_fixed(begun.params, begun.buffers)
    assert lf.same_bits(fixed, dense)
    network = through.trainer.work.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        drawn = {name: torch.bernoulli(torch.sigmoid(leaf)) for name, leaf in odds.items()}
        torch.manual_seed(7)
        x = setting.trainer.data.val.x
        sampled = apply_training(network, begun.params, begun.buffers, x)[0]
    likeliest = {**fixed}
    computed = apply_evaluating(network, begun.params, begun.buffers, x)
    trained = {**fixed}
    for name in LAYERS:
        noise = torch.randn(odds[name].shape, generator=generator(SEED, "supermask", name))
        assert torch.equal(odds[name], (math.log(DENSITY / (1 - DENSITY)) + 0.01 * noise).to(odds[name].dtype))
        chances = torch.sigmoid(odds[name])
        assert float(chances.mean()) == pytest.approx(DENSITY, abs=0.01)
        assert 0.001 < float(chances.std()) < 0.003  # not all equal
        ones = int(drawn[name].sum())
        trained[name] = fixed[name] * drawn[name] * (odds[name].numel() / ones)
        count = round(DENSITY * odds[name].numel())
        top = torch.zeros(odds[name].numel()).index_fill(0, odds[name].flatten().topk(count).indices, 1)
        likeliest[name] = fixed[name] * top.view_as(odds[name]) / DENSITY
        chosen = found.ticket.params[name] != 0
        torch.testing.assert_close(found.ticket.params[name], dense[name] * chosen / DENSITY)
        assert int(chosen.sum()) == int(found.masks[name].sum()) == count
    torch.testing.assert_close(sampled, outputs(trained, x))
    torch.testing.assert_close(computed, outputs(likeliest, x))
    assert lf.same_bits({n: found.ticket.params[n] for n in BIASES}, {n: dense[n] for n in BIASES})
    assert found.test == pytest.approx(quality(found.ticket.params, setting.trainer.data.test), rel=1e-5)


def test_the_largest_weights_compute_and_all_learn(setting: Setting) -> None:
    """Straight through a layer's largest (JaxPruner's STE): gradients as if the mask weren't there."""
    data = setting.trainer.data
    params = {name: nn.Parameter(leaf.clone()) for name, leaf in dense_of(setting).params.items()}
    masks = dense_of(setting).masks
    counts = {name: int(number) for name, number in lf.erk()({}, masks, 1 - DENSITY).items()}

    def masked() -> tuple[Params, Masks]:
        tops = {name: params[name].detach().abs().flatten().topk(counts[name]).indices for name in LAYERS}
        flat = {name: torch.zeros(params[name].numel(), dtype=torch.bool) for name in LAYERS}
        found = {name: flat[name].index_fill(0, tops[name], True).view_as(params[name]) for name in LAYERS}
        leaves = {name: leaf.detach() * found.get(name, 1) for name, leaf in params.items()}
        return {name: leaf.requires_grad_() for name, leaf in leaves.items()}, found

    optimizer = torch.optim.SGD(params.values(), RATE, momentum=0.9)
    best, chosen = math.inf, masked()
    for step in range(STEPS + 1):
        if step % EVERY == 0 and (loss := quality(masked()[0], data.val).loss) < best:
            best, chosen = loss, masked()
        if step < STEPS:
            ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
            network, _ = masked()
            F.cross_entropy(outputs(network, x), y).backward()
            for name, leaf in params.items():
                leaf.grad = network[name].grad
            optimizer.step()
    found = setting.outcome("ste")
    for name, mask in masked()[1].items():
        assert torch.equal(found.masks[name], mask)  # at the end
    for name, mask in chosen[1].items():
        assert torch.equal(found.ticket.params[name] != 0, mask)
    for name, weight in chosen[0].items():
        torch.testing.assert_close(found.ticket.params[name], weight.detach())


@pytest.mark.parametrize("more", [None, 0.35])
def test_top_kast_by_hand(setting: Setting, more: float | None) -> None:
    """Jayakumar et al. 2020: a fifth of each layer computes, two fifths (or more) learn, and the others stay."""
    data = setting.trainer.data
    params = {name: nn.Parameter(leaf.clone()) for name, leaf in dense_of(setting).params.items()}

    def largest(share: float) -> Masks:
        tops = {
            name: params[name].detach().abs().flatten().topk(round(share * params[name].numel())) for name in LAYERS
        }
        flat = {name: torch.zeros(params[name].numel(), dtype=torch.bool) for name in LAYERS}
        return {name: flat[name].index_fill(0, tops[name].indices, True).view_as(params[name]) for name in LAYERS}

    def computing() -> Params:
        masks = largest(DENSITY)
        return {name: (leaf.detach() * masks.get(name, 1)).requires_grad_() for name, leaf in params.items()}

    optimizer = torch.optim.SGD(params.values(), RATE, momentum=0.9, weight_decay=0.01)
    best, chosen = math.inf, computing()
    for step in range(STEPS + 1):
        if step % EVERY == 0 and (loss := quality(computing(), data.val).loss) < best:
            best, chosen = loss, computing()
        if step < STEPS:
            ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
            network, computes, learns = computing(), largest(DENSITY), largest(more or 2 * DENSITY)
            F.cross_entropy(outputs(network, x), y).backward()
            before = {name: leaf.detach().clone() for name, leaf in params.items()}
            for name, leaf in params.items():
                leaf.grad = gradient_of(network[name])
                if name in LAYERS:
                    only = learns[name] & ~computes[name]
                    leaf.grad = leaf.grad * learns[name] + 1e-4 * before[name] * (computes[name] + only / DENSITY)
            optimizer.step()
            for name in LAYERS:
                params[name].data[~learns[name]] = before[name][~learns[name]]
    found = setting.outcome("top-kast", weight_decay=0.01, backward_density=more)
    for name, mask in largest(DENSITY).items():
        assert torch.equal(found.masks[name], mask)  # at the end
    for name, weight in chosen.items():
        torch.testing.assert_close(found.ticket.params[name], weight.detach())
    with pytest.raises(
        UserError, match=r"--backward-density: invalid value 0\.1 \(expected at least the density, 0\.2"
    ):
        setting.plan("top-kast", backward_density=0.1)


def test_top_kasts_densities_may_meet_and_never_pass_one(setting: Setting) -> None:
    """As many weights compute as learn, and twice as many as 0.6 are all: then no weight stays as it was."""
    dense = dense_of(setting)
    for given, learning in (({"backward_density": DENSITY}, DENSITY), ({"density": 0.6}, 1.0)):
        (through,) = setting.plan("top-kast", **given).through
        begun, work = through.begin(dense, SEED), through.trainer.work
        grads = {name: torch.ones_like(leaf) for name, leaf in begun.params.items()}
        context = ChainContext(begun.params, begun.step)
        state = work.optimizer.init(begun.params)
        new, _ = work.optimizer.update(grads, state, begun.params, begun.step, context)
        for name in LAYERS:
            moved = new[trained_name(name)] != begun.params[trained_name(name)]
            assert int(moved.sum()) == round(learning * moved.numel())


@pytest.mark.parametrize("name", ["supermask", "edge-popup", "top-kast"])
def test_a_small_layer_keeps_one_weight(name: str) -> None:
    """Of 100 and 4 weights at a density of 5 %: four and one. The first layer has a single output."""
    model = lf.from_module(nn.Sequential(nn.Linear(100, 1, bias=False), nn.Linear(1, 4, bias=False)))
    drawn, y = torch.Generator().manual_seed(0), torch.arange(30) % 4
    x = torch.randn(30, 100, generator=drawn)
    few = lf.data.from_tensors("few", (x, y), (x[:9], y[:9]), val=6)
    (through,) = plan_for(name, model, few, steps=4, eval_every=2, batch_size=5, density=0.05).through
    begun = through.begin(lf.init(model), 0)
    ticket = through.ticket(begun.params, begun.buffers, lf.init(model))
    assert [int(mask.sum()) for mask in ticket.masks.values()] == [4, 1]


def test_a_layers_mask_is_scaled_by_what_it_lacks() -> None:
    for ones in range(5):
        mask = (torch.arange(4) < ones).float()
        assert rescaled(mask).tolist() == pytest.approx([4 / max(1, ones) if at < ones else 0 for at in range(4)])


def test_parts_are_put_around_the_optimizer_inside_of_those_it_has() -> None:
    def part(name: str, follows: bool) -> Part:
        return Part(name, lambda params, buffers: (), lambda tree, state, context: (tree, state), follows=follows)

    whole = lf.chain(part("a", False), part("b", False), lf.sgd(0.1), part("y", True), part("z", True))
    for given, names in ((whole, ["a", "b", "before", "sgd", "after", "y", "z", "last"]),
                         (lf.sgd(0.1), ["before", "sgd", "after", "last"])):  # fmt: skip
        made = around(given, (part("before", False),), (part("after", True),), (part("last", True),))
        assert [each.name if isinstance(each, Part) else "sgd" for each in made.parts] == names
        assert [each.parts for each in made.parts if not isinstance(each, Part)] == [()]


@pytest.mark.parametrize("name", ["ste", "supermask", "edge-popup", "top-kast"])
def test_parts_of_a_batch_are_counted_once(setting: Setting, name: str) -> None:
    through = setting.plan(name, accumulate=2).through
    assert [each.trainer.batch_size for each in through] == [setting.plan(name).trainer.batch_size * 2]
