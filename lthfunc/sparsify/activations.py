"""Scores from what a layer reads: Wanda, and SparseGPT's optimal brain surgeon with compensated weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.fold import Transformation
from lthfunc.trees.model import Model, linear_inputs
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Masks, Params, TrainState

#: Per linear layer's weight, the second moments of its inputs: float64 (features, features), means over rows.
Moments = dict[str, Tensor]


def input_moments(model: Model, state: TrainState, inputs: Sequence[Tensor]) -> Moments:
    """X^T X / n for every linear layer of the masked network, over batches of (scaled) inputs."""
    params = apply_masks(state.params, state.masks)
    totals: Moments = {}
    rows: dict[str, int] = {}
    for x in inputs:
        for name, read in linear_inputs(model, params, state.buffers, x).items():
            flat = read.reshape(-1, read.shape[-1]).double()
            totals[name] = totals.get(name, 0) + flat.T @ flat
            rows[name] = rows.get(name, 0) + len(flat)
    return {name: total / rows[name] for name, total in totals.items()}


def wanda(moments: Mapping[str, Tensor]) -> Score:
    """|w| · ‖x‖, the root mean square of the input that the weight reads (Sun et al. 2024, eq. 1).

    Layers without moments (convolutions) are scored by magnitude alone. Theirs compares within an output's weights:
    select with `per_output`.
    """

    def score(params: Params, masks: Masks) -> Scores:
        def of(name: str) -> Tensor:
            size = params[name].abs()
            return size * moments[name].diagonal().sqrt().to(size) if name in moments else size

        return {name: of(name) for name in masks}

    return score


#: How many columns of weights (rows, columns), scored by (w / d)², are chosen: scores, share -> kept.
Choice = Callable[[Tensor, float], Tensor]


def best_of_block(scores: Tensor, density: float) -> Tensor:
    """The best of a block of columns, wherever they are."""
    keep = round(density * scores.numel())
    order = scores.flatten().argsort(descending=True, stable=True)
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[order[:keep]] = True
    return kept.view(scores.shape)


def sparsegpt(
    moments: Mapping[str, Tensor],
    density: float,
    *,
    choose: Choice = best_of_block,
    block: int = 128,
    damping: float = 0.01,
) -> Transformation:
    """Prune linear layers to `density`, column after column, the rest of a row making up for what went.

    Frantar & Alistarh 2023, alg. 1: with the inverse Hessian's upper Cholesky factor, weights of a block of columns are
    chosen by (w / d)², and each pruned weight's error is spread over the columns to its right. `damping` (of the mean
    of the Hessian's diagonal) keeps it invertible. Convolutions and embeddings stay as they are. The pruned weights of
    the state stay pruned.
    """
    if not 0 < density <= 1:
        raise invalid("density", density, "a number in (0, 1]")

    def transformation(state: TrainState) -> TrainState:
        params, masks = dict(state.params), dict(state.masks)
        for name in state.masks:
            if name in moments:
                params[name], masks[name] = _surgeon(
                    state.params[name], state.masks[name], moments[name], density, choose, block, damping
                )
        return state._replace(params=params, masks=masks, opt=())

    return transformation


def _surgeon(
    weight: Tensor, mask: Tensor, moments: Tensor, density: float, choose: Choice, block: int, damping: float
) -> tuple[Tensor, Tensor]:
    """One layer: (outputs, inputs) weights and their new mask."""
    w = torch.where(mask, weight, 0).double()
    hessian = moments.to(w).clone()
    unread = hessian.diagonal() == 0
    hessian += torch.diag(unread.double() + damping * hessian.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(torch.linalg.inv(hessian), upper=True)
    if failed:
        raise UserError(f"damping: {damping!r} is too small for these inputs; try 0.1")
    kept = mask.clone()
    for first in range(0, w.shape[1], block):
        last = min(first + block, w.shape[1])
        diagonal = factor.diagonal()[first:last]
        scores = torch.where(mask[:, first:last], (w[:, first:last] / diagonal).square(), -1)
        kept[:, first:last] &= choose(scores, density)
        errors = torch.zeros(w.shape[0], last - first, dtype=w.dtype, device=w.device)
        for column in range(first, last):
            errors[:, column - first] = torch.where(kept[:, column], 0, w[:, column]) / factor[column, column]
            w[:, column:last] -= errors[:, column - first, None] * factor[column, column:last]
        w[:, last:] -= errors @ factor[first:last, last:]
    return torch.where(kept, w, 0).to(weight.dtype), kept
