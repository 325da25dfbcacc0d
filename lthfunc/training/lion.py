"""Lion (Chen et al. 2023, alg. 2): steps of one size, along the sign of a momentum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.training.optimizers import Optimizer, check_ranges, check_real, table_like
from lthfunc.training.schedules import Schedule, as_schedule, rate_at
from lthfunc.trees.ops import tree_map
from lthfunc.trees.types import Params


class LionState(NamedTuple):
    """schedule: the params' dtype, (steps,). momentum: like params."""

    schedule: Schedule
    momentum: Params


@public
def lion(lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> Optimizer:
    """The pure optimiser; weight decay is decoupled. Rates are a third to a tenth of AdamW's.

    Raises UserError for betas or weight decay out of range.
    """
    beta1, beta2 = betas
    check_ranges(beta1=beta1, beta2=beta2, weight_decay=weight_decay)
    schedule = as_schedule(lr)

    def init(params: Params) -> LionState:
        check_real(params, "lion")
        return LionState(table_like(schedule, params), tree_map(torch.zeros_like, params))

    def update(grads: Params, state: LionState, params: Params, step: Tensor) -> tuple[Params, LionState]:
        rate = rate_at(state.schedule, step)
        keep = 1 - rate * weight_decay
        new = {
            name: p * keep - rate * torch.sign(state.momentum[name] * beta1 + grads[name] * (1 - beta1))
            for name, p in params.items()
        }
        momentum = {name: m * beta2 + grads[name] * (1 - beta2) for name, m in state.momentum.items()}
        return new, LionState(state.schedule, momentum)

    return Optimizer(init, update)
