"""Masks found by gradients that pass straight through them: Ste-magnitude, supermasks, edge-popup."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.experiments.methods.setting import Outcome, Setting, start, tested
from lthfunc.sparsify.allocation import Keep
from lthfunc.sparsify.budgets import erk, uniform
from lthfunc.sparsify.scores import magnitude
from lthfunc.sparsify.selection import unstructured
from lthfunc.training.loop import fit
from lthfunc.training.optimizers import Optimizer, adam
from lthfunc.training.reparametrised import (
    Drawn,
    Weights,
    buffers_part,
    largest,
    reparametrised,
    straight_through,
    trained_part,
)
from lthfunc.trees.model import init
from lthfunc.trees.ops import apply_masks, count
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Buffers, Params

#: Spread of the log odds at first, so that no two weights are equal; and their learning rate, which is a weight's no
#: more (Zhou et al. train theirs by descent at a rate of 100): at 0.2 half of LeNet-300-100 reaches 93 % on MNIST in
#: 1,000 steps, at 0.01 82 %.
_NOISE, _ODDS_LR = 0.01, 0.2


def straight(setting: Setting, seed: int) -> Outcome:
    """The largest weights compute, all weights learn from their gradient; layers share as in ERK (JaxPruner's STE)."""
    state = start(setting, seed)
    names = setting.model.prunable
    keep = erk()({}, state.masks, 1 - setting.density)
    counts = _numbers(keep)

    def weights(trained: Params, fixed: Params) -> Params:
        hard = {name: trained[name] * largest(trained[name].abs(), counts[name]) for name in names}
        return {**trained, **{name: straight_through(hard[name], trained[name]) for name in names}}

    def draw(number: int) -> tuple[Params, Params, Buffers]:
        params, buffers = setting.model.init(number)
        return params, {}, buffers

    trained, buffers, steps = _train(setting, seed, "ste", draw, weights, weights)
    masks = unstructured(magnitude(trained, state.masks), state.masks, keep)
    return tested(setting, apply_masks(trained, masks), buffers, masks, steps)


def supermask(setting: Setting, seed: int) -> Outcome:
    """Weights stay as they were drawn; each one's probability to be there is trained (Zhou et al. 2019, sec. 5).

    Probabilities begin at the density, and weights are scaled up for what is missing, as their sec. 5.2 does (here by
    the root, which keeps the variance). In the end, and wherever the network is measured, the likeliest of each layer
    stay.
    """
    dense = start(setting, seed)
    keep = uniform(1)({}, dense.masks, 1 - setting.density)
    total, budget = count(dense.masks).total, sum(_numbers(keep).values())
    odds = float(torch.logit(torch.tensor(setting.density, dtype=torch.float64)))

    def draw(number: int) -> tuple[Params, Params, Buffers]:
        params, buffers = setting.model.init(number)
        draws = {name: generator(number, "supermask", name) for name in setting.model.prunable}
        noise = {name: torch.randn(params[name].shape, generator=draw) for name, draw in draws.items()}
        return {name: odds + _NOISE * leaf for name, leaf in noise.items()}, params, buffers

    def sampled(trained: Params, fixed: Params) -> Params:
        chances = {name: torch.sigmoid(leaf) for name, leaf in trained.items()}
        masks = {name: straight_through(torch.bernoulli(chance.detach()), chance) for name, chance in chances.items()}
        kept = torch.stack([mask.detach().sum() for mask in masks.values()]).sum()
        return _under(fixed, masks, (total / kept.clamp(min=1)).sqrt())

    def likeliest(trained: Params, fixed: Params) -> Params:
        masks = unstructured(trained, dense.masks, keep)
        return _under(
            fixed, {name: mask.to(fixed[name].dtype) for name, mask in masks.items()}, (total / budget) ** 0.5
        )

    scores, buffers, steps = _train(setting, seed, "supermask", draw, sampled, likeliest, adam(_ODDS_LR))
    masks = unstructured(scores, dense.masks, keep)
    return tested(setting, likeliest(scores, dense.params), buffers, masks, steps)


def edge_popup(setting: Setting, seed: int) -> Outcome:
    """Weights of one size and random sign stay; each layer's best-scored compute (Ramanujan et al. 2020, eq. 5)."""
    names = setting.model.prunable
    full = start(setting, seed).masks
    keep = uniform(1)({}, full, 1 - setting.density)
    counts = _numbers(keep)

    def draw(number: int) -> tuple[Params, Params, Buffers]:
        params, buffers = setting.model.init(number)
        scores = {name: torch.rand(params[name].shape, generator=generator(number, "popup", name)) for name in names}
        signed = {name: params[name].sign() * _spread(params[name], setting.density) for name in names}
        return scores, {**params, **signed}, buffers

    def weights(trained: Params, fixed: Params) -> Params:
        return _under(
            fixed, {name: straight_through(largest(leaf.abs(), counts[name]), leaf) for name, leaf in trained.items()}
        )

    scores, buffers, steps = _train(setting, seed, "edge-popup", draw, weights, weights)
    masks = unstructured(magnitude(scores, full), full, keep)
    fixed = {name: leaf.to(setting.device) for name, leaf in draw(seed)[1].items()}
    return tested(setting, apply_masks(fixed, masks), buffers, masks, steps)


def _numbers(keep: Keep) -> dict[str, int]:
    return {name: int(number) for name, number in keep.items()}


def _under(fixed: Params, masks: Params, scale: Tensor | float = 1.0) -> Params:
    return {**fixed, **{name: fixed[name] * mask * scale for name, mask in masks.items()}}


def _spread(weight: Tensor, density: float) -> float:
    """The standard deviation of a Kaiming normal draw, widened for the weights that are missing."""
    fan_in = weight[0].numel()
    return float((2 / (fan_in * density)) ** 0.5)


def _train(
    setting: Setting,
    seed: int,
    name: str,
    draw: Drawn,
    training: Weights,
    evaluating: Weights,
    optimizer: Optimizer | None = None,
) -> tuple[Params, Buffers, int]:
    """Train a reparametrised network to the end; what was trained at the point that validation chose."""
    model = reparametrised(setting.model, name, draw, training, evaluating)
    trainer = setting.trainer_of(model, optimizer or setting.trainer.optimizer)
    state = init(model, seed, setting.device)
    result = fit(trainer, state, seed=seed, until=setting.steps, eval_every=setting.eval_every)
    trained, _, buffers = draw(seed)
    chosen = result.chosen
    return trained_part(chosen.params, trained), buffers_part(chosen.buffers, buffers), setting.steps
