"""SRigL: RigL with the same number of weights for every neuron, which drops whole neurons (Lasby et al. 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import by_masks, growth_scores, period, steps_of, with_updates
from lthfunc.sparsify.allocation import number_pruned
from lthfunc.sparsify.ranking import best, ranks_in_rows
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.schedules import Schedule
from lthfunc.trees.types import NewMasks, TrainState


def srigl(
    plan: Plan, update_every: int | None, update_until: float, drop_fraction: float, drop_schedule: str, growth: str,
    rates: Schedule, min_salient: float,
) -> Plan:  # fmt: skip
    """Drop the smallest weights of a layer, and grow each neuron to the same number where the gradient is large.

    Neurons in which fewer than `min_salient` of these would be among the layer's largest weights or gradients are left
    out (their sec. 3.1), but for outputs. Numbers of neurons differ by one where the layer's count demands it.
    """
    end, every = period(plan, update_every, update_until)
    growing, falling = growth_of(growth, rates), DROP_SCHEDULES.load(drop_schedule)

    def masks(state: TrainState, now: UpdateContext) -> NewMasks:
        hopes = growth_scores(plan.trainer, growing, state, now)
        share, new = falling(drop_fraction, now.step, end), NewMasks({}, {})
        for name, mask in state.masks.items():
            salient = 0.0 if name == plan.model.output else min_salient
            new.stays[name], new.masks[name] = exchanged(state.params[name].abs(), hopes[name], mask, share, salient)
        return new

    return with_updates(plan, by_masks(steps_of(end, every), masks))


def exchanged(worth: Tensor, hope: Tensor, mask: Tensor, share: float, min_salient: float) -> tuple[Tensor, Tensor]:
    """(the mask of a layer without what is dropped, with what is grown)."""
    worth, hope, living = worth.flatten(1), hope.flatten(1), mask.flatten(1)
    count, width = int(living.sum()), living.shape[1]
    if not count:
        return mask, mask
    dropped = int(number_pruned(living.sum(), share))
    stay = best(worth, living, count - dropped)
    salient = (stay | best(hope, torch.ones_like(living), dropped)).sum(1)
    active = int((salient >= min_salient * count / int(living.any(1).sum())).sum())
    active = max(active, math.ceil(count / width))  # those that remain must hold all weights
    kept = best(salient, torch.ones_like(salient, dtype=torch.bool), active)
    living = living & kept[:, None]
    wanted = torch.where(kept, count // active + (kept.cumsum(0) <= count % active), 0)[:, None]
    stay = best(worth, living, count - dropped)
    stay &= ranks_in_rows(worth, stay) < wanted
    new = stay | ((ranks_in_rows(hope, ~stay) < wanted - stay.sum(1, keepdim=True)) & ~stay)
    return stay.view(mask.shape), new.view(mask.shape)
