"""Synaptic flow: a score without data (Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad

from lthfunc.arguments import public
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import Masks, Params


@public
def synflow(forward: Callable[[Params, Tensor], Tensor], shape: tuple[int, ...]) -> Score:
    """|w| · ∂R/∂|w|, R the sum of the outputs for an input of ones under the weights' magnitudes (eq. 2 and alg. 1).

    forward: (params, inputs) -> outputs, in evaluation mode; shape: of one input. In float64, since the product of
    many layers leaves float32's range. In a network of linear and convolution layers with ReLU the scores into a
    hidden unit sum to those out of it; so all layers that follow each other have one total.

    Scored once, it is no better than magnitude: take many steps to the density (`densities.geometric`, 100 of them).
    """

    def score(params: Params, masks: Masks) -> Scores:
        magnitudes = {name: leaf.abs().double() for name, leaf in apply_masks(params, masks).items()}
        ones = torch.ones(1, *shape, dtype=torch.float64, device=next(iter(params.values())).device)
        flow = grad(lambda p: forward(p, ones).sum())(magnitudes)
        return {name: magnitudes[name] * flow[name] for name in masks}

    return score
