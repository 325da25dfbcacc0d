"""Group lasso by proximal steps: units whose weights shrink together (Wen et al. 2016; Parikh & Boyd 2014)."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.trained_masks import around
from lthfunc.experiments.rewinding_and_controls import RoundContext
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.trainer import with_work
from lthfunc.trees.prunable import weights_by_inputs
from lthfunc.trees.types import Buffers, Masks, Params, Ticket, TrainState


def group_lasso(plan: Plan, shrinkage: float) -> Plan:
    """Train the dense network with units that shrink after each step, prune the smallest units, and train on.

    A group is what a unit reads; of the output layer, what reads a unit. The proximal operator of λ √n ‖w‖, n being the
    group's size, lessens its root mean square by λ, or makes it zero (Parikh & Boyd 2014, sec. 6.5.4). A layer's λ in
    all steps together is `shrinkage` times the mean of its groups' root mean squares at first, but never more than
    leaves as many groups as the density says. Exactly the density remains: whole groups, and of each layer's last one
    the largest weights.
    """
    plain, output = plan.trainer, plan.model.output
    turned = weights_by_inputs(plan.model.evaluating)
    groups = {name: (name == output) != (name in turned) for name in plan.model.prunable}
    optimizer = around(
        plain.work.optimizer, (), (_shrinking(groups, plan.density_of(plan.rounds), shrinkage / plan.steps),)
    )
    shrinking = with_work(plain, plain.work._replace(optimizer=optimizer), "eager")

    def score(params: Params, masks: Masks) -> Scores:
        return {name: by_groups(params[name] * mask, groups[name]) for name, mask in masks.items()}

    def scoring(trained: TrainState, now: RoundContext) -> Score:
        return score

    pruned = TrainedMasks(
        plain, lambda start, seed: start, lambda params, buffers, start: Ticket(params, buffers, start.masks),
        dense=False,
    )  # fmt: skip
    return plan._replace(trainer=shrinking, score=scoring, through=(pruned,) * plan.rounds)


def sizes_of(weight: Tensor, by_columns: bool) -> Tensor:
    """The root mean square of each group, in a shape that broadcasts over the weights."""
    others = [axis for axis in range(weight.ndim) if axis != by_columns]
    return weight.square().mean(others, keepdim=True).sqrt()


def shrunk(weight: Tensor, by_columns: bool, amount: Tensor | float) -> Tensor:
    """The proximal step: each group's root mean square less by an amount, but not below zero."""
    sizes = sizes_of(weight, by_columns)
    return weight * (1 - amount / sizes.clamp(min=torch.finfo(weight.dtype).tiny)).clamp(min=0)


def by_groups(weight: Tensor, by_columns: bool) -> Tensor:
    """Scores by the root mean square of a weight's group; within a group, by |w|."""
    sizes = sizes_of(weight, by_columns)
    places = sizes.flatten().argsort(stable=True).argsort().view(sizes.shape)
    return places + weight.abs().double() / (weight.abs().max().double() + 1)


def _shrinking(groups: dict[str, bool], density: float, rate: float) -> Part:
    """The proximal step behind the optimiser. groups: whether a leaf's groups are its columns."""

    def init(params: Params, buffers: Buffers) -> Params:
        return {name: rate * sizes_of(params[name], by_columns).mean() for name, by_columns in groups.items()}

    def update(new: Params, amounts: Params, context: ChainContext) -> tuple[Params, Params]:
        shrunken = {}
        for name, by_columns in groups.items():
            sizes = sizes_of(new[name], by_columns).flatten().sort(descending=True).values
            least = max(1, round(density * len(sizes)))  # that remain
            bound = sizes[least:].max() if least < len(sizes) else torch.zeros_like(amounts[name])
            shrunken[name] = shrunk(new[name], by_columns, torch.minimum(amounts[name], bound))
        return {**new, **shrunken}, amounts

    return Part("shrinking", init, update, follows=True, mixes=True)
