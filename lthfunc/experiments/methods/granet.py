"""GraNet: gradual pruning with regeneration (Liu et al. 2021, alg. 1)."""

from __future__ import annotations

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import from_dense, growth_scores, period, pruned_to
from lthfunc.sparsify.density_schedules import cubic
from lthfunc.sparsify.drop_and_grow import drop_and_grow
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.trees.types import TrainState


def granet(
    plan: Plan, update_every: int | None, update_until: float, drop_fraction: float, drop_schedule: str, growth: str
) -> Plan:
    """Prune by magnitude along a cubic from the first step on; after each pruning drop small weights and grow others.

    As in their code, growth scores are those of the network before the pruning, and a weight that is dropped and grown
    at once keeps its value. Unlike theirs, regeneration ends with the pruning.
    """
    end, every = period(plan, update_every, update_until)
    growing, falling = growth_of(growth), DROP_SCHEDULES.load(drop_schedule)

    def updates(target: float) -> MaskUpdates:
        densities = dict(cubic(target, 0, end, every)[1:])

        def change(state: TrainState, now: UpdateContext) -> TrainState:
            scores = growth_scores(plan.trainer, growing, state, now)
            pruned = pruned_to(plan, densities[now.step])(state)
            return drop_and_grow(pruned, scores, falling(drop_fraction, now.step, end), keep_values=True)

        return MaskUpdates(tuple(densities), change)

    return from_dense(plan, updates)
