"""Masks found by gradients that pass straight through them: Ste-magnitude, supermasks, edge-popup."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lthfunc.experiments.courses.context import MethodContext, start
from lthfunc.experiments.courses.course import Carry, Course, Method
from lthfunc.experiments.methods.trained_masks import (
    NOISE,
    ODDS_LR,
    popped,
    rescaled_deviation,
    whole_numbers,
    with_masked,
)
from lthfunc.sparsify.budgets import erk, uniform
from lthfunc.sparsify.scores import magnitude
from lthfunc.sparsify.structures import unstructured
from lthfunc.training.optimizers import Optimizer, adam
from lthfunc.training.parametrize import (
    InitFunction,
    WeightFunction,
    buffers_part,
    parametrized,
    straight_through,
    top_k_mask,
    trained_part,
)
from lthfunc.trees.model import init
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Buffers, Masks, Params, Ticket


@Method
def straight(context: MethodContext, seed: int) -> Course:
    """Compute with the largest weights, train all with their gradient; densities by ERK (JaxPruner's STE)."""
    state = start(context, seed)
    names = context.model.prunable
    keep = erk()({}, state.masks, 1 - context.density)
    counts = whole_numbers(keep)

    def weights(trained: Params, fixed: Params) -> Params:
        hard = {name: trained[name] * top_k_mask(trained[name].abs(), counts[name]) for name in names}
        return {**trained, **{name: straight_through(hard[name], trained[name]) for name in names}}

    def draw(number: int) -> tuple[Params, Params, Buffers]:
        params, buffers = context.model.init(number)
        return params, {}, buffers

    def ticket(trained: Params, buffers: Buffers) -> Ticket:
        masks = unstructured(magnitude(trained, state.masks), state.masks, keep)
        return Ticket(apply_masks(trained, masks), buffers, masks)

    return _course(context, seed, "ste", draw, weights, weights, ticket)


@Method
def supermask(context: MethodContext, seed: int) -> Course:
    """Keep the initial weights, and train each one's probability to be in the mask (Zhou et al. 2019, sec. 5).

    Each layer's weights are scaled up for those that its mask lacks, as in sec. 5.2 (`rescaled`). Unlike theirs,
    probabilities start at the density, not at one half; and at the end, and in evaluations, the likeliest weights of
    each layer remain, where theirs are drawn, so that the density is the given one.
    """
    dense = start(context, seed)
    keep = uniform(1)({}, dense.masks, 1 - context.density)
    odds = float(torch.logit(torch.tensor(context.density, dtype=torch.float64)))

    def draw(number: int) -> tuple[Params, Params, Buffers]:
        params, buffers = context.model.init(number)
        draws = {name: generator(number, "supermask", name) for name in context.model.prunable}
        noise = {name: torch.randn(params[name].shape, generator=draw) for name, draw in draws.items()}
        return {name: odds + NOISE * leaf for name, leaf in noise.items()}, params, buffers

    def sampled(trained: Params, fixed: Params) -> Params:
        chances = {name: torch.sigmoid(leaf) for name, leaf in trained.items()}
        masks = {name: straight_through(torch.bernoulli(chance.detach()), chance) for name, chance in chances.items()}
        return with_masked(fixed, {name: rescaled(mask) for name, mask in masks.items()})

    def likeliest(trained: Params, fixed: Params) -> Params:
        everything = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in trained.items()}
        masks = unstructured(trained, everything, keep)
        return with_masked(fixed, {name: rescaled(mask.to(fixed[name].dtype)) for name, mask in masks.items()})

    def ticket(scores: Params, buffers: Buffers) -> Ticket:
        return Ticket(likeliest(scores, dense.params), buffers, unstructured(scores, dense.masks, keep))

    return _course(context, seed, "supermask", draw, sampled, likeliest, ticket, adam(ODDS_LR))


def rescaled(mask: Tensor) -> Tensor:
    """A layer's mask times (number of entries / number of ones), also in the gradient, as in Zhou et al.'s code."""
    return mask * (mask.numel() / mask.sum().clamp(min=1))


@Method
def edge_popup(context: MethodContext, seed: int) -> Course:
    """Keep weights of one size and random signs; compute with each layer's best-scored (Ramanujan et al. 2020, sec. 3).

    Their signed constants, scaled for the density, and their Kaiming-uniform scores, of which the absolute values
    count; the optimiser is the context's, where theirs is descent at 0.1 with momentum along a cosine.
    """
    names = context.model.prunable
    full = start(context, seed).masks
    keep = uniform(1)({}, full, 1 - context.density)
    counts = whole_numbers(keep)

    def draw(number: int) -> tuple[Params, Params, Buffers]:
        params, buffers = context.model.init(number)
        drawn = {name: torch.rand(params[name].shape, generator=generator(number, "popup", name)) for name in names}
        scores = {name: (2 * leaf - 1) / leaf[0].numel() ** 0.5 for name, leaf in drawn.items()}
        signed = {name: params[name].sign() * rescaled_deviation(params[name], context.density) for name in names}
        return scores, {**params, **signed}, buffers

    def weights(trained: Params, fixed: Params) -> Params:
        return with_masked(fixed, {name: popped(leaf, counts[name]) for name, leaf in trained.items()})

    def ticket(scores: Params, buffers: Buffers) -> Ticket:
        masks = unstructured(magnitude(scores, full), full, keep)
        fixed = {name: leaf.to(context.device) for name, leaf in draw(seed)[1].items()}
        return Ticket(apply_masks(fixed, masks), buffers, masks)

    return _course(context, seed, "edge-popup", draw, weights, weights, ticket)


def _course(
    context: MethodContext,
    seed: int,
    name: str,
    draw: InitFunction,
    training: WeightFunction,
    evaluating: WeightFunction,
    ticket: Callable[[Params, Buffers], Ticket],
    optimizer: Optimizer | None = None,
) -> Course:
    """One training of a parametrised network. ticket: (trained params, buffers) -> the method's final network."""
    model = parametrized(context.model, name, draw, training, evaluating)
    trainer = context.trainer_of(model, optimizer or context.trainer.work.optimizer)
    trained, _, buffers = draw(seed)

    def ends_with(params: Params, others: Buffers, masks: Masks) -> Ticket:
        return ticket(trained_part(params, trained), buffers_part(others, buffers))

    return Course(Carry(init(model, seed, context.device)), trainer, ticket=ends_with)
