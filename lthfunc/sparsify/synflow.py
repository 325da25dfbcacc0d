"""Synaptic flow: a score without data (Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.gradient_scores import check_reached, differentiated, gradient_times_weight
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.outputs import outputs_of, prediction
from lthfunc.trees.types import Masks, Params


@public
def synflow(forward: Callable[[Params, Tensor], Any], shape: tuple[int, ...]) -> Score:
    """SynFlow: |w| · ∂R/∂|w|, R the sum of the outputs for an input of ones under the weights |w|.

    Tanaka et al. 2020, eq. 2 and alg. 1. forward: (params, inputs) -> outputs in evaluation mode, as `forward_of` makes
    it; shape: of one input. Of several output tensors the one counts that is compared with the targets or, where that
    isn't known, all of them. Computed in float64, since the product over many layers leaves float32's range. One
    scoring is no better than magnitude; prune in many steps (`prune_to_densities` with `geometric`, 100 of them).
    Returns a score.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> score = lf.synflow(lf.forward_of(model, {}), (4,))
    >>> lf.density(lf.prune_to_densities(lf.geometric(0.5, rounds=10), score=score)(lf.init(model)).masks)
    0.5
    """

    reached = False  # which a network is in every round, or in none; to look is to wait for a GPU

    def score(params: Params, masks: Masks) -> Scores:
        nonlocal reached
        magnitudes = {name: _magnitudes(leaf) for name, leaf in apply_masks(params, masks).items()}
        ones = torch.ones(1, *shape, dtype=torch.float64, device=next(iter(params.values())).device)

        def total(p: Params) -> Tensor:
            return _total(forward(p, ones))

        flow = differentiated(forward, lambda: grad(total)(magnitudes))
        if not reached:
            check_reached(forward, total, magnitudes, flow)
            reached = True
        return {name: gradient_times_weight(flow[name], magnitudes[name]) for name in masks}

    return score


def _magnitudes(leaf: Tensor) -> Tensor:
    return leaf.abs().to(torch.complex128) if leaf.is_complex() else leaf.abs().double()


def _total(outputs: Any) -> Tensor:
    try:
        found = [prediction(outputs)]
    except UserError:
        found = outputs_of(outputs).tensors
    real = [leaf.real for leaf in found if leaf.is_floating_point() or leaf.is_complex()]
    if not real:
        raise UserError("synflow: the network returns no real numbers")
    return torch.stack([leaf.sum() for leaf in real]).sum() if len(real) > 1 else real[0].sum()
