"""Masks found by gradients that pass straight through them: Ste-magnitude, supermasks, edge-popup."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.sparsify.allocation import KeepCounts
from lthfunc.sparsify.budgets import erk, uniform
from lthfunc.sparsify.scores import magnitude
from lthfunc.sparsify.structures import unstructured
from lthfunc.training.chain import Part, chain
from lthfunc.training.optimizers import Optimizer, adam
from lthfunc.training.parametrize import (
    WeightFunction,
    buffers_part,
    parametrized,
    parametrized_state,
    straight_through,
    top_k_mask,
    trained_and_fixed,
)
from lthfunc.training.trainer import with_work
from lthfunc.trees.ops import apply_masks, full_masks
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Buffers, Masks, Params, Ticket, TrainState

#: (the network's params, seed) -> (what is trained, what is fixed).
Drawn = Callable[[Params, int], tuple[Params, Params]]
#: (what was trained, what is fixed) -> (the network's params, its masks).
Found = Callable[[Params, Params], tuple[Params, Masks]]

#: Initial spread of the log odds, so that no two weights are equal; and their learning rate, which differs from the
#: weights' (Zhou et al. use gradient descent at a rate of 100): at 0.2, half of LeNet-300-100 reaches 93 % on MNIST in
#: 1,000 steps, at 0.01 82 %.
NOISE, ODDS_LR = 0.01, 0.2


def straight(plan: Plan) -> Plan:
    """Compute with the largest weights, train all with their gradient; densities by ERK (JaxPruner's STE)."""
    names = plan.model.prunable

    def of_density(density: float) -> TrainedMasks:
        full = unpruned(plan)
        keep = erk()({}, full, 1 - density)
        counts = whole_numbers(keep)

        def weights(trained: Params, fixed: Params) -> Params:
            hard = {name: trained[name] * top_k_mask(trained[name].abs(), counts[name]) for name in names}
            return {**trained, **{name: straight_through(hard[name], trained[name]) for name in names}}

        return trained_masks(plan, "ste", as_they_are, weights, weights, largest(full, keep))

    return through(plan, of_density)


def supermask(plan: Plan) -> Plan:
    """Keep the initial weights, and train each one's probability to be in the mask (Zhou et al. 2019, sec. 5).

    Each layer's weights are scaled up for those that its mask lacks, as in sec. 5.2 (`rescaled`). Unlike theirs,
    probabilities start at the density, not at one half; and at the end, and in evaluations, the likeliest weights of
    each layer remain, where theirs are drawn, so that the density is the given one.
    """

    def of_density(density: float) -> TrainedMasks:
        full = unpruned(plan)
        keep = uniform(1)({}, full, 1 - density)
        odds = float(torch.logit(torch.tensor(density, dtype=torch.float64)))

        def draw(params: Params, seed: int) -> tuple[Params, Params]:
            draws = {name: generator(seed, "supermask", name) for name in plan.model.prunable}
            noise = {name: torch.randn(params[name].shape, generator=draw) for name, draw in draws.items()}
            return {name: (odds + NOISE * leaf).to(params[name].device) for name, leaf in noise.items()}, params

        def sampled(trained: Params, fixed: Params) -> Params:
            chances = {name: torch.sigmoid(leaf) for name, leaf in trained.items()}
            drawn = {name: straight_through(torch.bernoulli(leaf.detach()), leaf) for name, leaf in chances.items()}
            return with_masked(fixed, {name: rescaled(mask) for name, mask in drawn.items()})

        def likeliest(trained: Params, fixed: Params) -> Params:
            masks = unstructured(trained, full_masks(trained, plan.model.prunable), keep)  # on any device
            return with_masked(fixed, {name: rescaled(mask.to(fixed[name].dtype)) for name, mask in masks.items()})

        def found(trained: Params, fixed: Params) -> tuple[Params, Masks]:
            return likeliest(trained, fixed), unstructured(trained, full, keep)

        return trained_masks(plan, "supermask", draw, sampled, likeliest, found, adam(ODDS_LR))

    return through(plan, of_density)


def rescaled(mask: Tensor) -> Tensor:
    """A layer's mask times (number of entries / number of ones), also in the gradient, as in Zhou et al.'s code."""
    return mask * (mask.numel() / mask.sum().clamp(min=1))


def edge_popup(plan: Plan) -> Plan:
    """Keep weights of one size and random signs; compute with each layer's best-scored (Ramanujan et al. 2020, sec. 3).

    Their signed constants, scaled for the density, and their Kaiming-uniform scores, of which the absolute values
    count; the optimiser is the plan's, where theirs is descent at 0.1 with momentum along a cosine.
    """
    names = plan.model.prunable

    def of_density(density: float) -> TrainedMasks:
        full = unpruned(plan)
        keep = uniform(1)({}, full, 1 - density)
        counts = whole_numbers(keep)

        def draw(params: Params, seed: int) -> tuple[Params, Params]:
            drawn = {name: torch.rand(params[name].shape, generator=generator(seed, "popup", name)) for name in names}
            scores = {
                name: ((2 * leaf - 1) / leaf[0].numel() ** 0.5).to(params[name].device) for name, leaf in drawn.items()
            }
            signs = {name: params[name].sign() * rescaled_deviation(params[name], density) for name in names}
            return scores, {**params, **signs}

        def weights(trained: Params, fixed: Params) -> Params:
            return with_masked(fixed, {name: popped(leaf, counts[name]) for name, leaf in trained.items()})

        def found(trained: Params, fixed: Params) -> tuple[Params, Masks]:
            masks = unstructured(magnitude(trained, full), full, keep)
            return apply_masks(fixed, masks), masks

        return trained_masks(plan, "edge-popup", draw, weights, weights, found)

    return through(plan, of_density)


def popped(scores: Tensor, keep: int) -> Tensor:
    """1 at the `keep` largest |scores|, 0 elsewhere; |scores| get its gradient as it is (their code's GetSubnet)."""
    sizes = scores.abs()
    return straight_through(top_k_mask(sizes, keep), sizes)


def as_they_are(params: Params, seed: int) -> tuple[Params, Params]:
    """The initial weights are what trains, and nothing is fixed."""
    return params, {}


def largest(full: Masks, keep: KeepCounts) -> Found:
    """The largest of the trained weights are the ticket."""

    def found(trained: Params, fixed: Params) -> tuple[Params, Masks]:
        masks = unstructured(magnitude(trained, full), full, keep)
        return apply_masks(trained, masks), masks

    return found


def unpruned(plan: Plan) -> Masks:
    """The masks of the whole network."""
    params, device = dict(plan.model.training.named_parameters()), plan.trainer.data.train.y.device
    return {name: torch.ones(params[name].shape, dtype=torch.bool, device=device) for name in plan.model.prunable}


def whole_numbers(keep: KeepCounts) -> dict[str, int]:
    """How many weights each layer keeps, as Python's numbers."""
    return {name: int(number) for name, number in keep.items()}


def with_masked(fixed: Params, masks: Params) -> Params:
    """The params, with products in place of those that have masks."""
    return {**fixed, **{name: fixed[name] * mask for name, mask in masks.items()}}


def rescaled_deviation(weight: Tensor, density: float) -> float:
    """The standard deviation of Kaiming normal initialisation, scaled up for the missing weights."""
    fan_in = weight[0].numel()
    return float((2 / (fan_in * density)) ** 0.5)


def through(plan: Plan, of_density: Callable[[float], TrainedMasks]) -> Plan:
    """The plan with trainings of masks, which start from the dense network."""
    each = tuple(of_density(plan.density_of(number)) for number in range(1, plan.rounds + 1))
    return plan._replace(densities=(1.0,) * plan.rounds, through=each)


def around(
    optimizer: Optimizer, before: Sequence[Part] = (), after: Sequence[Part] = (), last: Sequence[Part] = ()
) -> Optimizer:
    """The optimiser with parts right before and right after its own update, inside of those that it has; and last."""
    parts = optimizer.parts or (optimizer,)
    place = next(at for at, part in enumerate(parts) if isinstance(part, Optimizer))
    return chain(*parts[:place], *before, parts[place], *after, *parts[place + 1 :], *last)


def refuse_parts(plan: Plan, method: str, options: Mapping[str, str], reason: str) -> None:
    """Raise UserError for an optimiser with some parts. options: part -> its option. reason: what they would do."""
    for part in plan.trainer.work.optimizer.parts:
        if isinstance(part, Part) and part.name in options:
            raise UserError(f"--method: {method} takes no {options[part.name]}, which {reason}")


def trained_masks(
    plan: Plan,
    name: str,
    draw: Drawn,
    training: WeightFunction,
    evaluating: WeightFunction,
    found: Found,
    optimizer: Optimizer | None = None,
) -> TrainedMasks:
    """The training of a parametrised network."""

    def drawn(seed: int) -> tuple[Params, Params, Params]:
        params, buffers = plan.model.init(seed)
        return *draw(params, seed), buffers

    model, trainer = parametrized(plan.model, name, drawn, training, evaluating), plan.trainer
    work = trainer.work._replace(model=model, optimizer=optimizer or trainer.work.optimizer)

    def begin(start: TrainState, seed: int) -> TrainState:
        return parametrized_state(model, *draw(start.params, seed), start.buffers, start.step)

    def ticket(params: Params, buffers: Buffers, start: TrainState) -> Ticket:
        weights, masks = found(*trained_and_fixed(params, buffers))
        return Ticket(weights, buffers_part(buffers, start.buffers), masks)

    return TrainedMasks(with_work(trainer, work, "eager"), begin, ticket)
