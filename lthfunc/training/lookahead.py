"""Lookahead (Zhang et al. 2019): slow weights that follow the optimiser's every few steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.training.chain import ChainContext, Part
from lthfunc.trees.ops import clone
from lthfunc.trees.types import Buffers, Params


class LookaheadState(NamedTuple):
    """slow: like params. steps: int64 scalar, the steps taken."""

    slow: Params
    steps: Tensor


@public
def lookahead(every: int = 5, share: float = 0.5) -> Part:
    """Lookahead: every few steps, slow weights go a share of the way to the optimiser's, which continue from them.

    every: at least 1, the paper's k. share: in (0, 1], the paper's α. The optimiser's moments continue. Between two
    meetings the network is that of the optimiser's weights. Source: Zhang et al. 2019, alg. 1. Returns a part of a
    `chain`, behind the optimiser. Raises UserError for numbers out of range.

    >>> params = {"w": torch.tensor([1.0])}
    >>> optimizer = lf.chain(lf.sgd(0.1), lf.lookahead(every=1, share=0.5))
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.7500])}
    """

    def init(params: Params, buffers: Buffers) -> LookaheadState:
        like = next(iter(params.values()))
        return LookaheadState(clone(params), torch.zeros((), dtype=torch.int64, device=like.device))

    def update(params: Params, state: LookaheadState, context: ChainContext) -> tuple[Params, LookaheadState]:
        steps = state.steps + 1
        meet = steps % every == 0
        slow = {
            name: torch.where(meet, leaf + (params[name] - leaf) * share, leaf) for name, leaf in state.slow.items()
        }
        new = {name: torch.where(meet, slow[name], leaf) for name, leaf in params.items()}
        return new, LookaheadState(slow, steps)

    return Part("lookahead", init, update, follows=True)
