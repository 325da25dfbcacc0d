"""Gates and thresholds against trainings in plain PyTorch, with the papers' formulas in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient_of
from method_plans import Outcome
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
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.methods.trained_gates import gate_name
from lthfunc.training.batches import batches
from lthfunc.training.chain import ChainContext, ChainState
from lthfunc.training.parametrize import trained_and_fixed, trained_name
from lthfunc.trees.model import apply_evaluating, apply_training
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Masks, Params

KEPT, FASTER = 296, 2.0  # a fifth of 1480 weights; how many times as fast as weights gates learn


def largest(scores: Params) -> Masks:
    order = torch.cat([scores[name].detach().flatten() for name in LAYERS]).argsort(descending=True, stable=True)
    flat = torch.zeros(1480, dtype=torch.bool).index_fill(0, order[:KEPT], True)
    return {name: part.view(20, -1) if name == "1.weight" else part.view(10, 20)
            for name, part in zip(LAYERS, flat.split([1280, 200]), strict=True)}  # fmt: skip


#: (params, gates, sharpness) -> what computes; the share of open gates, differentiable; scores; what remains.
Parts = tuple[Params, Tensor, Params, Params]


def check_by_hand(
    setting: Setting, found: Outcome, gates: Params, parts: Callable[[Params, Params, float], Parts],
    penalty: Callable[[Params, float], Tensor], ascent: float, last: float,
) -> None:  # fmt: skip
    """Train params and gates with torch.optim.SGD; the penalty's factor rises while the network is too dense."""
    data = setting.trainer.data
    params: Params = {name: nn.Parameter(leaf.clone()) for name, leaf in dense_of(setting).params.items()}
    weights = torch.optim.SGD(params.values(), RATE, momentum=0.9)
    others = torch.optim.SGD(gates.values(), FASTER * RATE, momentum=0.9)
    factor, best, grew = 0.0, math.inf, 0
    chosen: Params = {}

    def ticket(sharpness: float) -> tuple[Params, Masks]:
        _, _, scores, values = parts(params, gates, sharpness)
        masks = largest(scores)
        return {name: leaf.detach() * masks.get(name, 1) for name, leaf in {**params, **values}.items()}, masks

    for step in range(STEPS + 1):
        sharpness = last ** (step / STEPS)
        if step % EVERY == 0 and (loss := quality(ticket(sharpness)[0], data.val).loss) < best:
            best, chosen = loss, ticket(sharpness)[0]
        if step == STEPS:
            break
        ((x, y),) = batches(data.train, BATCH, SEED, step, step + 1)
        computes, share, _, _ = parts(params, gates, sharpness)
        excess = float(share.detach()) - DENSITY
        factor = factor + ascent / STEPS * excess if excess > 0 else 0.0
        grew += excess > 0
        weights.zero_grad()
        others.zero_grad()
        (F.cross_entropy(outputs({**params, **computes}, x), y) + factor * penalty(gates, sharpness)).backward()
        weights.step()
        others.step()
    assert 0 < grew < STEPS or last > 1  # the factor has risen, and begun anew
    params_at_end, masks = ticket(last)
    for name, mask in masks.items():
        assert torch.equal(found.masks[name], mask)
        torch.testing.assert_close(found.last.fit.state.params[name], params_at_end[name], rtol=1e-6, atol=1e-9)
    for name, leaf in chosen.items():
        torch.testing.assert_close(found.ticket.params[name], leaf, rtol=1e-6, atol=1e-9)
    assert found.test == pytest.approx(quality(chosen, data.test), rel=1e-6)
    assert lf.count(found.masks).kept == KEPT


def test_soft_thresholds_by_hand(setting: Setting) -> None:
    """Kusupati et al. 2020: sign(w) relu(|w| - sigmoid(s)), s of each layer decayed towards 0 from -10."""
    thresholds: Params = {name: nn.Parameter(torch.tensor(-10.0, dtype=torch.float64)) for name in LAYERS}

    def parts(params: Params, gates: Params, sharpness: float) -> Parts:
        bounds = {name: 1 / (1 + torch.exp(-gates[name])) for name in LAYERS}
        soft = {name: F.softshrink(params[name], 0) for name in LAYERS}
        soft = {name: torch.sign(leaf) * torch.clamp(leaf.abs() - bounds[name], min=0) for name, leaf in soft.items()}
        share = torch.cat([(params[name].abs() > bounds[name]).flatten() for name in LAYERS]).double().mean()
        return soft, share, {name: params[name].abs() - bounds[name] for name in LAYERS}, soft

    def penalty(gates: Params, sharpness: float) -> Tensor:
        return torch.stack([leaf.square() / 2 for leaf in gates.values()]).sum()

    found = setting.outcome("str", gate_rate=FASTER)
    check_by_hand(setting, found, thresholds, parts, penalty, ascent=1, last=1)


def test_continuous_sparsification_by_hand(setting: Setting) -> None:
    """Savarese et al. 2020: w sigmoid(βs) / sigmoid(0), β from 1 to 200; by the largest s in evaluations."""
    dense = dense_of(setting).params
    gates: Params = {name: nn.Parameter(torch.zeros_like(dense[name])) for name in LAYERS}

    def opened(gates: Params, sharpness: float) -> Params:
        return {name: 1 / (1 + torch.exp(-sharpness * gates[name])) for name in LAYERS}

    def share_of(gates: Params, sharpness: float) -> Tensor:
        return torch.cat([leaf.flatten() for leaf in opened(gates, sharpness).values()]).mean()

    def parts(params: Params, gates: Params, sharpness: float) -> Parts:
        computes = {name: params[name] * leaf / 0.5 for name, leaf in opened(gates, sharpness).items()}
        return computes, share_of(gates, sharpness), gates, {name: params[name] / 0.5 for name in LAYERS}

    found = setting.outcome("continuous-sparsification", gate_rate=FASTER)
    check_by_hand(setting, found, gates, parts, share_of, ascent=20, last=200)


def test_hard_concrete_gates_by_hand(setting: Setting) -> None:
    """Louizos et al. 2018, eq. 10 to 13: drawn in training, without noise elsewhere; most gates are exactly 0 or 1."""
    plan, dense = setting.plan("l0"), dense_of(setting).params
    (through,) = plan.through
    begun = through.begin(dense_of(setting), SEED)
    trained, fixed = trained_and_fixed(begun.params, begun.buffers)
    assert fixed == {}
    for name in LAYERS:
        noise = torch.randn(dense[name].shape, generator=generator(SEED, "l0", name))
        torch.testing.assert_close(trained[gate_name(name)], (math.log(0.7 / 0.3) + 0.01 * noise).double())
        trained[gate_name(name)] = torch.randn(dense[name].shape, generator=torch.Generator().manual_seed(1)).double()
    network, buffers, x = through.trainer.work.model, begun.buffers, setting.trainer.data.val.x
    changed = {trained_name(name): leaf for name, leaf in trained.items()}

    def stretched(soft: Tensor) -> Tensor:
        return torch.clamp(soft * 1.2 - 0.1, 0, 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        drawn = {name: torch.rand_like(dense[name]) for name in LAYERS}
        torch.manual_seed(7)
        computed = apply_training(network, changed, buffers, x)[0]
    soft = {
        name: torch.sigmoid((drawn[name].log() - (1 - drawn[name]).log() + trained[gate_name(name)]) / (2 / 3))
        for name in LAYERS
    }
    torch.testing.assert_close(
        computed, outputs({**dense, **{name: dense[name] * stretched(leaf) for name, leaf in soft.items()}}, x)
    )
    open_ = torch.cat([(stretched(leaf) > 0).flatten() for leaf in soft.values()]).double().mean()
    masks = largest({name: trained[gate_name(name)] for name in LAYERS})
    settled = {name: dense[name] * stretched(torch.sigmoid(trained[gate_name(name)])) * masks[name] for name in LAYERS}
    torch.testing.assert_close(apply_evaluating(network, changed, buffers, x), outputs({**dense, **settled}, x))
    ticket = through.ticket(changed, buffers, dense_of(setting))
    assert lf.same_bits(ticket.masks, masks)
    torch.testing.assert_close(ticket.params, {**dense, **settled})

    def chance_of(gates: Params) -> Tensor:  # of being open, the mean
        each = [torch.sigmoid(gates[name] - 2 / 3 * math.log(0.1 / 1.1)) for name in LAYERS]
        return torch.cat([leaf.flatten() for leaf in each]).mean()

    leaves = {name: trained[gate_name(name)].clone().requires_grad_() for name in LAYERS}
    share = chance_of(leaves)
    assert float(open_) == pytest.approx(share.item(), abs=0.03)
    share.backward()
    penalty = through.trainer.work.optimizer.parts[0]
    zeros = {name: torch.zeros_like(leaf) for name, leaf in changed.items()}
    pulled, factor = penalty.update(zeros, torch.tensor(0.5), ChainContext(changed, torch.tensor(3)))
    assert float(factor) == pytest.approx(0.5 + 100 / STEPS * (float(share) - DENSITY))
    for name in LAYERS:
        gradient = pulled[trained_name(gate_name(name))]
        torch.testing.assert_close(gradient, float(factor) * gradient_of(leaves[name]), rtol=1e-6, atol=0)
        assert not pulled[trained_name(name)].any()
    closed = {**changed, **{trained_name(gate_name(name)): trained[gate_name(name)] - 9 for name in LAYERS}}
    assert float(penalty.update(zeros, torch.tensor(0.5), ChainContext(closed, torch.tensor(3)))[1]) == 0


def test_gates_learn_in_a_training_of_its_own(setting: Setting) -> None:
    """By 50 times the rate of weights, unless it is another; what remains is what the last gates say."""
    found = setting.outcome("l0")
    assert lf.count(found.masks).kept == KEPT
    assert found.steps == STEPS
    for name, rate in (("l0", 50.0), ("str", 50.0), ("continuous-sparsification", 1.0)):
        (through,) = setting.plan(name).through
        begun = through.begin(dense_of(setting), SEED)
        work = through.trainer.work
        gate = trained_name(gate_name("1.weight"))
        grads = {each: torch.ones_like(leaf) for each, leaf in begun.params.items()}
        grads[gate] = -grads[gate]
        state = work.optimizer.init(begun.params)
        assert isinstance(state, ChainState)
        new, _ = work.optimizer.update(grads, state, begun.params, begun.step, ChainContext(begun.params, begun.step))
        torch.testing.assert_close(
            new[trained_name("3.weight")] - begun.params[trained_name("3.weight")],
            torch.full((10, 20), -RATE, dtype=torch.float64),
        )
        moved = float((new[gate] - begun.params[gate]).mean()) / RATE
        assert moved == pytest.approx(rate, rel=0.2), name  # and the penalty's gradient


@pytest.mark.parametrize("drawn", [0.0, 1.0])
def test_gates_are_drawn_a_millionth_away_from_certainty(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, drawn: float
) -> None:
    """So that no logarithm is infinite: a gate as far on the other side is then half open."""
    (through,) = setting.plan("l0").through
    dense = dense_of(setting)
    begun, far = through.begin(dense, SEED), math.log((1 - 1e-6) / 1e-6) * (1 if drawn == 0 else -1)
    gates = {trained_name(gate_name(name)): torch.full_like(dense.params[name], far) for name in LAYERS}
    monkeypatch.setattr(torch, "rand_like", lambda leaf: torch.full_like(leaf, drawn))
    x = setting.trainer.data.val.x
    computed = apply_training(through.trainer.work.model, {**begun.params, **gates}, begun.buffers, x)[0]
    halved = {name: leaf / 2 if name in LAYERS else leaf for name, leaf in dense.params.items()}
    torch.testing.assert_close(computed, outputs(halved, x))
