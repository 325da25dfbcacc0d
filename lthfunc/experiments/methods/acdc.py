"""AC/DC: sparse and dense phases in turn (Peste et al. 2021, alg. 1)."""

from __future__ import annotations

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.during_training import from_dense, pruned_to
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.trees.ops import full_masks
from lthfunc.trees.types import TrainState

#: Phases in a training, unless --update-every says how long one is: 5 of their 100 epochs.
_PHASES = 20


def acdc(plan: Plan, update_every: int | None, update_until: float) -> Plan:
    """Two phases dense, then sparse and dense ones in turn; the last dense one lasts until the masks stay.

    As in their code, the optimiser starts afresh in each dense phase, and pruned weights start from zero.
    """
    sparse, dense = phases(plan.steps, update_every, update_until)

    def updates(target: float) -> MaskUpdates:
        def change(state: TrainState, now: UpdateContext) -> TrainState:
            if now.step in sparse:
                return pruned_to(plan, target)(state)
            return state._replace(masks=full_masks(state.params, plan.model.prunable), opt=())

        return MaskUpdates(tuple(sorted((*sparse, *dense))), change)

    return from_dense(plan, updates)


def phases(steps: int, update_every: int | None, update_until: float) -> tuple[list[int], list[int]]:
    """(the steps after which sparse phases begin, and dense ones). Raises UserError if none fits in."""
    end = round(update_until * steps)
    if end < 4:
        raise UserError("--steps: the training is too short for a sparse and a dense phase")
    every = update_every or max(1, steps // _PHASES)
    if 3 * every >= end:
        raise invalid("--update-every", every, f"at most {(end - 1) // 3}, as phases end at step {end}")
    starts = list(range(2 * every, end, every))
    dense = starts[1::2]
    return [*starts[: 2 * len(dense) : 2], end], dense
