"""Gradients of a loss of a user's network, with errors of one line; and products of gradients with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from lthfunc.errors import UserError
from lthfunc.tracebacks import function_name
from lthfunc.trees.module_errors import failing, no_gradient_message
from lthfunc.trees.types import Batch, Params

#: (params, batch) -> the mean loss over the batch, a scalar.
LossOfParams = Callable[[Params, Batch], Tensor]


def gradient_of(loss: LossOfParams, params: Params, batch: Batch) -> Params:
    """The gradient at the params. Raises UserError where there is none, or the loss depends on no parameter."""
    found = differentiated(loss, lambda: grad(loss)(params, batch))
    check_reached(loss, lambda p: loss(p, batch), params, found)
    return found


def differentiated(loss: Callable[..., Any], take: Callable[[], Params]) -> Params:
    """The result of `take`. Raises UserError where it fails, with the user's line at fault."""
    model = getattr(loss, "model", None)  # of one that `loss_of` made
    name, modules = (f"loss: {function_name(loss)!r}", []) if model is None else (model.name, [model.training])
    with failing(f"{name} has no gradient", *modules):
        return take()


def check_reached(named: Any, value_of: Callable[[Params], Tensor], params: Params, gradient: Params) -> None:
    """Raise UserError where a gradient is zero because the value doesn't depend on the params at all.

    named: the loss, or what else to name in the message.
    """
    # Under vmap and while compiling, values cannot be inspected.
    if torch.compiler.is_compiling() or any(map(torch._C._functorch.is_functorch_wrapped_tensor, gradient.values())):
        return
    if any(bool(leaf.any()) for leaf in gradient.values()):
        return
    with torch.enable_grad():
        value = value_of({name: leaf.detach().requires_grad_().clone() for name, leaf in params.items()})
    if not value.requires_grad:
        model = getattr(named, "model", None)
        what = f"outputs of {model.name}" if model is not None else f"values of {function_name(named)!r}"
        raise UserError(no_gradient_message(what))


def gradient_times_weight(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient times weight, entry by entry; of complex numbers, the sum over their two real parts."""
    return (gradient.conj() * weight).real if weight.is_complex() else gradient * weight
