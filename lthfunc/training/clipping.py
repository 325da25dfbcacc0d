"""Clipping of gradients, by their norm or by their values, as torch.nn.utils does it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.training.chain import ChainContext, Part
from lthfunc.trees.ops import parts_squared, tree_map
from lthfunc.trees.types import Params

#: What torch.nn.utils.clip_grad_norm_ adds to the norm before it divides by it.
EPSILON = 1e-6


class ClipNormNumbers(NamedTuple):
    """The argument of `clip_by_global_norm`, for engines that have their own code for it."""

    max_norm: float


class ClipValueNumbers(NamedTuple):
    """The argument of `clip_by_value`, for engines that have their own code for it."""

    limit: float


@public
def clip_by_global_norm(max_norm: float) -> Part:
    """Scale the gradient down where its norm over all parameters exceeds `max_norm` (Pascanu et al. 2013, alg. 1).

    max_norm: above 0. The norm is that of the surviving weights and of all other parameters; with several ranks, of
    their mean gradient. As torch.nn.utils.clip_grad_norm_. Returns a part of a `chain`. Raises UserError for a number
    out of range.

    >>> clip = lf.clip_by_global_norm(1.0)
    >>> grads = {"w": torch.tensor([6.0, 8.0])}
    >>> optimizer = lf.chain(clip, lf.sgd(1.0))
    >>> optimizer.update(grads, optimizer.init(grads), grads, torch.tensor(0))[0]
    {'w': tensor([5.4000, 7.2000])}
    """

    def update(grads: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        factor = (max_norm / (global_norm(grads, context) + EPSILON)).clamp(max=1)
        return tree_map(lambda leaf: leaf * factor.to(leaf.real.dtype), grads), state

    return Part("clip_by_global_norm", lambda params, buffers: (), update, numbers=ClipNormNumbers(max_norm))


@public
def clip_by_value(limit: float) -> Part:
    """Bring each entry of the gradient into [-limit, limit], as torch.nn.utils.clip_grad_value_ does.

    limit: above 0. Returns a part of a `chain`. Raises UserError for a number out of range.

    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> optimizer = lf.chain(lf.clip_by_value(2.0), lf.sgd(0.1))
    >>> optimizer.update({"w": torch.tensor([5.0, -1.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.8000, 1.1000])}
    """

    def clipped(leaf: Tensor) -> Tensor:
        if leaf.is_complex():  # as two real numbers each
            return torch.complex(leaf.real.clamp(-limit, limit), leaf.imag.clamp(-limit, limit))
        return leaf.clamp(-limit, limit)

    def update(grads: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        return tree_map(clipped, grads), state

    return Part("clip_by_value", lambda params, buffers: (), update, numbers=ClipValueNumbers(limit))


def global_norm(tree: Params, context: ChainContext) -> Tensor:
    """The 2-norm of all leaves together: a real scalar."""
    squares = [parts_squared(leaf) for leaf in tree.values()]
    sums = [(each.real + each.imag if each.is_complex() else each).sum() for each in squares]
    return context.total(torch.stack([each.to(sums[0].dtype) for each in sums]).sum()).sqrt()
