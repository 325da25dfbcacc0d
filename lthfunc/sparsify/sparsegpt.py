"""Optimal brain surgery: weights are pruned where the rest of their row can compensate (SparseGPT)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.activations import check_moments, stored_transposed
from lthfunc.sparsify.allocation import fixed_counts, fraction_to
from lthfunc.sparsify.budgets import apportion, uniform
from lthfunc.sparsify.ranking import ranks
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import TrainState

#: Selects within a block of columns: (scores (rows, columns), share to keep) -> what remains, bool. The score of a
#: weight is (w / d)², that of a pruned one -1.
BlockSelect = Callable[[Tensor, float], Tensor]


def best_of_block(scores: Tensor, density: float) -> Tensor:
    """The best of a block of columns, wherever they are."""
    return ranks(scores, torch.ones_like(scores, dtype=torch.bool)) < round(density * scores.numel())


@public
def sparsegpt(
    moments: Mapping[str, Tensor],
    density: float | Mapping[str, int],
    *,
    choose: BlockSelect = best_of_block,
    block: int = 128,
    damping: float = 0.01,
) -> Transformation:
    """SparseGPT: prune layers column by column, and let the rest of each row compensate.

    Frantar & Alistarh 2023, alg. 1. With the upper Cholesky factor of the inverse Hessian, weights of a block of
    columns are chosen by (w / d)², and the error of each pruned weight is spread over the columns to its right. Weights
    on inputs that are always zero go first. Layers without moments stay as they are, and pruned weights stay pruned. A
    convolution's columns are its channels · kernel, in each of its groups.

    moments: of `input_moments`. density: of all layers with moments together, in (0, 1], the same in each layer and
    block as far as their remaining weights allow; or how many weights each of these layers keeps. choose: which weights
    of a block stay, by default the best. block: columns at a time. damping: added to the Hessian's diagonal, relative
    to its mean, so that it can be inverted. Returns a transformation. Raises UserError for an argument out of range or,
    when it is applied, moments of no layer or a density above that of the layers.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> state = lf.init(model)
    >>> moments = lf.input_moments(model, state, [torch.randn(16, 4)])
    >>> lf.count(lf.sparsegpt(moments, density=0.5)(state).masks)
    Count(kept=4, total=8)
    """

    def transformation(state: TrainState) -> TrainState:
        if getattr(moments, "diagonal", False):
            raise UserError("moments: are diagonals alone; lf.input_moments(model, state, inputs) gives whole ones")
        params, masks = dict(state.params), dict(state.masks)
        layers = {name: mask for name, mask in state.masks.items() if name in moments}
        if state.masks and not layers:
            raise invalid("moments", list(moments), f"those of some of {', '.join(state.masks)}")
        if isinstance(density, Mapping):
            budgets = fixed_counts(density)({}, layers, 0.0)
        else:
            budgets = uniform()({}, layers, fraction_to(density, layers)) if layers else {}
        for name, budget in budgets.items():
            leaves = state.params[name], layers[name]
            check_moments(moments, name, leaves[0])
            operate = partial(_surgeon, choose=choose, block=block, damping=damping)
            turn = stored_transposed(moments, name)  # rows of what follows are outputs
            if turn:
                leaves = leaves[0].T, leaves[1].T
            new = _by_groups(operate, *leaves, moments[name], int(budget))
            params[name], masks[name] = (leaf.T.contiguous() for leaf in new) if turn else new
        return state._replace(params=params, masks=masks, opt=())

    return transformation


def _by_groups(
    operate: Callable[..., tuple[Tensor, Tensor]], weight: Tensor, mask: Tensor, moments: Tensor, budget: int
) -> tuple[Tensor, Tensor]:
    """One layer, whose groups of outputs read inputs of their own: each with its share of the budget."""
    hessians = moments if moments.ndim == 3 else moments[None]
    weights, masks = (leaf.reshape(len(hessians), -1, hessians.shape[-1]) for leaf in (weight, mask))
    sizes = dict.fromkeys(range(len(hessians)), weights[0].numel())
    shares = apportion(budget, sizes, dict(enumerate(masks.sum((1, 2)).tolist())), dict.fromkeys(sizes, 0))
    new = [operate(weights[k], masks[k], hessians[k], share) for k, share in shares.items()]
    wanted, kept = (torch.stack(parts).view(weight.shape) for parts in zip(*new, strict=True))
    return wanted, kept


def _surgeon(
    weight: Tensor, mask: Tensor, moments: Tensor, budget: int, choose: BlockSelect, block: int, damping: float
) -> tuple[Tensor, Tensor]:
    """One layer: (outputs, inputs) weights and their new mask, with `budget` entries left."""
    hessian = moments.to(weight.device, torch.complex128 if moments.is_complex() else torch.float64).clone()
    unread = hessian.diagonal() == 0
    w = torch.where(mask & ~unread, weight, 0).to(hessian.dtype)
    hessian += torch.diag(unread.double() + damping * hessian.diagonal().mean())
    inverse, singular = torch.linalg.inv_ex(hessian)
    factor, failed = torch.linalg.cholesky_ex(inverse, upper=True)
    if singular or failed:
        raise UserError(f"damping: {damping!r} is too small for these inputs; try 0.1")
    kept = mask.clone()
    for first, share in _shares(mask, unread, budget, block).items():
        last = min(first + block, w.shape[1])
        diagonal = factor.diagonal().real[first:last]
        scores = torch.where(mask[:, first:last], (w[:, first:last] / diagonal).abs().square(), -1)
        kept[:, first:last] &= choose(scores, share / scores.numel())
        errors = torch.zeros(w.shape[0], last - first, dtype=w.dtype, device=w.device)
        for column in range(first, last):
            errors[:, column - first] = torch.where(kept[:, column], 0, w[:, column]) / factor[column, column]
            w[:, column:last] -= errors[:, column - first, None] * factor[column, column:last]
        w[:, last:] -= errors @ factor[first:last, last:]
    return torch.where(kept, w, 0).to(weight.dtype), kept


def _shares(mask: Tensor, unread: Tensor, budget: int, block: int) -> dict[int, int]:
    """How many weights each block of columns keeps, by its first column: one density, as far as weights remain."""
    starts = range(0, mask.shape[1], block)

    def of_blocks(counted: Tensor) -> dict[int, int]:
        return {first: int(counted[:, first : first + block].sum()) for first in starts}

    sizes, living, read = of_blocks(torch.ones_like(mask)), of_blocks(mask), of_blocks(mask & ~unread)
    # Weights on inputs that are always zero stay only where there are too few others.
    enough = budget <= sum(read.values())
    return apportion(budget, sizes, read if enough else living, dict.fromkeys(sizes, 0) if enough else read)
