"""Sharpness-aware minimisation (Foret et al. 2021): the gradient where the loss is worst nearby."""

from __future__ import annotations

from typing import Any

from lthfunc.arguments import public
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.clipping import global_norm
from lthfunc.trees.types import Params

#: So that a gradient of zeros moves nothing.
_EPSILON = 1e-12


@public
def sam(radius: float = 0.05) -> Part:
    """Take the gradient at w + radius · g / ‖g‖ instead of g at w: sharpness-aware minimisation.

    radius: above 0, the paper's ρ. Only surviving weights are moved, and g is the gradient of the whole batch (on
    several ranks, too). The step computes two gradients; its loss and the buffers are those of the first. Source: Foret
    et al. 2021, alg. 1. Returns a part of a `chain`, which only a training step can run. Raises UserError for a radius
    out of range.

    >>> model, optimizer = lf.from_module(nn.Linear(4, 2)), lf.chain(lf.sam(0.05), lf.sgd(0.1))
    >>> step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    >>> state = lf.with_optimizer(lf.init(model), optimizer)
    >>> int(step(state, (torch.ones(3, 4), torch.tensor([0, 1, 1])))[0].step)
    1
    """

    def update(grads: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        far = radius / (global_norm(grads, context) + _EPSILON)
        there = {name: leaf + grads[name] * far.to(leaf.real.dtype) for name, leaf in context.params.items()}
        return context.gradient(there), state

    return Part("sam", lambda params, buffers: (), update)
