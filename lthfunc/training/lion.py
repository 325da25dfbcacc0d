"""Lion (Chen et al. 2023, alg. 2): steps of one size, along the sign of a momentum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.training.optimizers import Optimizer, check_real, chosen, table_like
from lthfunc.training.schedules import Schedule, as_schedule, rate_at
from lthfunc.trees.ops import tree_map
from lthfunc.trees.types import Params


class LionState(NamedTuple):
    """schedule: the params' dtype, (steps,). momentum: like params."""

    schedule: Schedule
    momentum: Params


@public
def lion(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
    decays: Callable[[str, Tensor], bool] | None = None,
) -> Optimizer:
    """Lion: steps of one size along the sign of a momentum (Chen et al. 2023, alg. 2).

    lr: a rate, or a schedule of rates; a third to a tenth of AdamW's. betas: in [0, 1). weight_decay: decoupled, at
    least 0, of the parameters that `decays` chooses (None: all). Raises UserError for numbers out of range.

    >>> params = {"w": torch.tensor([1.0])}
    >>> optimizer = lf.lion(0.1)
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.9000])}
    """
    beta1, beta2 = betas
    schedule = as_schedule(lr)

    def init(params: Params) -> LionState:
        check_real(params, "lion")
        return LionState(table_like(schedule, params), tree_map(torch.zeros_like, params))

    def update(grads: Params, state: LionState, params: Params, step: Tensor) -> tuple[Params, LionState]:
        rate = rate_at(state.schedule, step)
        keep = 1 - rate * weight_decay
        new = {
            name: (p * keep if chosen(decays, name, p) else p)
            - rate * torch.sign(state.momentum[name] * beta1 + grads[name] * (1 - beta1))
            for name, p in params.items()
        }
        momentum = {name: m * beta2 + grads[name] * (1 - beta2) for name, m in state.momentum.items()}
        return new, LionState(state.schedule, momentum)

    return Optimizer(init, update)
