"""What is checked of states in a training: rates before it, pruned weights on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lthfunc.errors import UserError
from lthfunc.training.chain import is_library_optimizer
from lthfunc.training.engines.interface import Work
from lthfunc.training.optimizer_states import schedule_in
from lthfunc.training.schedules import all_end_at
from lthfunc.trees.types import TrainState


def check_rates(states: Sequence[TrainState], end: int) -> None:
    """Raise UserError where steps up to `end` would change nothing, past a schedule's end."""
    known = [found for state in states if (found := schedule_in(state.opt)) is not None]
    still = next((step for step in all_end_at(known, end) if step is not None), None)
    if still is not None:
        raise UserError(
            f"learning rate: the schedule ends at about 0, so that steps {still} to {end} would change nothing; "
            "raise its end (lr_final of a run, final of a schedule), train no further, or rewind the step"
        )


def check_pruned_zero(states: Sequence[TrainState], work: Work) -> None:
    """Raise UserError where a pruned weight is no longer zero, which a user's module or optimiser may cause."""
    pruned = [(state.params[name], name, mask) for state in states for name, mask in state.masks.items()]
    if not pruned or (work.side_effects.known and is_library_optimizer(work.optimizer)):
        return
    # Numbers that are not finite are found elsewhere (`are_finite`); the device is waited for once.
    left = [leaf.masked_fill(mask, 0).nan_to_num(0, 0, 0).any() for leaf, _, mask in pruned]
    alive = torch.stack(left).tolist()
    if any(alive):
        raise UserError(
            f"{pruned[alive.index(True)][1]}: pruned weights are no longer zero after a step; the module writes into "
            "them in forward, or the optimizer moves weights without a gradient (Optimizer(..., mixes=True) masks them "
            "again)"
        )
