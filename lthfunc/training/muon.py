"""Muon (Jordan et al. 2024): the orthogonalised momentum of matrices. Its updates equal those of torch.optim.Muon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.training.optimizers import Optimizer, adamw, check_real, chosen, is_matrix, table_like
from lthfunc.training.schedules import Schedule, as_schedule, rate_at
from lthfunc.trees.types import Params

_A, _B, _C = 3.4445, -4.7750, 2.0315
_STEPS, _EPS = 5, 1e-7


class MuonState(NamedTuple):
    """schedule: in the params' dtype, (steps,). momentum: of the matrices. others: AdamW's state of the rest."""

    schedule: Schedule
    momentum: Params
    others: Any


@public
def muon(
    lr: float | Schedule,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    *,
    others: float = 0.15,
    is_matrix: Callable[[str, Tensor], bool] = is_matrix,
    decays: Callable[[str, Tensor], bool] | None = None,
) -> Optimizer:
    """Muon: the momentum of each matrix, orthogonalised (Jordan et al. 2024); AdamW for other parameters.

    lr: a rate, or a schedule of rates. momentum: in [0, 1), with nesterov or plain. weight_decay: at least 0. others:
    AdamW's rate relative to Muon's. is_matrix: (name, parameter) -> whether Muon applies; convolutions count as
    matrices (out, in · kernel). decays: (name, parameter) -> whether its weights decay; None: all do. An update mixes
    the weights of a layer, so pruned ones are masked after each step. Raises UserError for numbers out of range.

    >>> params = {"w": torch.eye(2), "b": torch.zeros(2)}
    >>> optimizer = lf.muon(0.1)
    >>> list(optimizer.update(params, optimizer.init(params), params, torch.tensor(0))[0])
    ['w', 'b']
    """
    schedule = as_schedule(lr)
    rest = adamw(schedule * others, weight_decay=weight_decay, decays=decays)

    def parted(tree: Params, like: Params) -> tuple[Params, Params]:
        wide = {name for name, leaf in like.items() if is_matrix(name, leaf)}
        return (
            {name: leaf for name, leaf in tree.items() if name in wide},
            {name: leaf for name, leaf in tree.items() if name not in wide},
        )

    def init(params: Params) -> MuonState:
        check_real(params, "muon")
        wide, vectors = parted(params, params)
        zeros = {name: torch.zeros_like(leaf) for name, leaf in wide.items()}
        return MuonState(table_like(schedule, params), zeros, rest.init(vectors) if vectors else ())

    def update(grads: Params, state: MuonState, params: Params, step: Tensor) -> tuple[Params, MuonState]:
        rate = rate_at(state.schedule, step)
        (wide, vectors), (slopes, others_slopes) = parted(params, params), parted(grads, params)
        velocity = {name: m.lerp(slopes[name], 1 - momentum) for name, m in state.momentum.items()}
        new = {}
        for name, p in wide.items():
            direction = slopes[name].lerp(velocity[name], momentum) if nesterov else velocity[name]
            shape = direction.flatten(1).shape
            stride = rate * math.sqrt(max(1.0, shape[0] / shape[1]))
            kept = p * (1 - rate * weight_decay) if chosen(decays, name, p) else p
            new[name] = kept - stride * _orthogonal(direction.flatten(1)).view_as(p)
        moved, following = rest.update(others_slopes, state.others, vectors, step) if vectors else ({}, ())
        return {name: {**new, **moved}[name] for name in params}, MuonState(state.schedule, velocity, following)

    return Optimizer(init, update, mixes=True)


def _orthogonal(matrix: Tensor) -> Tensor:
    """Approximately the nearest orthogonal matrix: five Newton-Schulz steps in bfloat16, as in torch.optim.Muon."""
    tall = matrix.shape[0] > matrix.shape[1]
    found = matrix.mT.bfloat16() if tall else matrix.bfloat16()
    found = found / found.norm().clamp(min=_EPS)
    for _ in range(_STEPS):
        gram = found @ found.mT
        gram = torch.addmm(gram, gram, gram, beta=_B, alpha=_C)
        found = torch.addmm(found, gram, found, beta=_A)
    return (found.mT if tall else found).to(matrix.dtype)
