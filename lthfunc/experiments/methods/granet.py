"""GraNet: gradual pruning with regeneration (Liu et al. 2021, alg. 1)."""

from __future__ import annotations

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import (
    asks_for_survivors_alone,
    by_masks,
    from_dense,
    growth_scores,
    period,
    pruned_to,
)
from lthfunc.sparsify.density_schedules import cubic
from lthfunc.sparsify.drop_and_grow import exchanged_masks
from lthfunc.sparsify.survivor_pruning import prune_survivors
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.training.results import DenseNetwork
from lthfunc.training.schedules import Schedule
from lthfunc.trees.types import NewMasks, SurvivorPruning, TrainState


def granet(
    plan: Plan,
    update_every: int | None,
    update_until: float,
    drop_fraction: float,
    drop_schedule: str,
    growth: str,
    rates: Schedule,
) -> Plan:
    """Prune by magnitude along a cubic from the first step on; after each pruning drop small weights and grow others.

    As in their code, growth scores are those of the network before the pruning, and a weight that is dropped and grown
    at once keeps its value. Unlike theirs, regeneration ends with the pruning.
    """
    end, every = period(plan, update_every, update_until)
    growing, falling = growth_of(growth, rates), DROP_SCHEDULES.load(drop_schedule)

    def updates(target: float) -> MaskUpdates:
        densities = dict(cubic(target, 0, end, every)[1:])

        def masks(state: TrainState, now: UpdateContext) -> NewMasks:
            scores = growth_scores(plan.trainer, growing, state, now)
            pruned = pruned_to(plan, densities[now.step])(state)
            share = falling(drop_fraction, now.step, end)
            return exchanged_masks(pruned.params, pruned.masks, scores, share, keep_values=True)

        dense = by_masks(tuple(densities), masks)
        if not asks_for_survivors_alone(plan):
            return dense

        def exchange(network: DenseNetwork, now: UpdateContext) -> SurvivorPruning:
            scores = growth_scores(plan.trainer, growing, network(), now)
            pruning = prune_survivors(densities[now.step], allocate=plan.allocate)
            return pruning._replace(then=(scores, falling(drop_fraction, now.step, end)))

        return dense._replace(exchange=exchange)

    return from_dense(plan, updates)
