"""Scores from gradients of a loss: how much the loss, or its gradient, would change without a weight.

All take ``loss(params, batch) -> scalar``, the mean over a batch (`loss_of` makes one of a model), and the batches to
average over. The loss is that of the masked network. A complex weight is two real numbers: products of gradients and
weights are sums over both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.sparsify.scores import Score, Scores
from lthfunc.tracebacks import function_name
from lthfunc.trees.module_errors import failing, no_gradient_message
from lthfunc.trees.ops import apply_masks, clone, parts_squared
from lthfunc.trees.types import Batch, Masks, Params

#: (params, batch) -> the mean loss over the batch, a scalar.
LossOfParams = Callable[[Params, Batch], Tensor]


@public
def snip(loss: LossOfParams, batches: Sequence[Batch]) -> Score:
    """SNIP: |g · w|, g the mean gradient over batches; connection sensitivity (Lee et al. 2019, eq. 6, unscaled).

    loss: (params, batch) -> scalar, as `loss_of` makes it. Returns a score. Raises UserError without a batch.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> batches = [(torch.ones(3, 4), torch.tensor([0, 1, 1]))]
    >>> lf.count(lf.prune(density=0.5, score=lf.snip(lf.loss_of(model, {}), batches))(lf.init(model)).masks)
    Count(kept=4, total=8)
    """

    def score(params: Params, masks: Masks) -> Scores:
        params = apply_masks(params, masks)
        mean = mean_gradient(loss, batches)(params, masks)
        return {name: gradient_times_weight(mean[name], params[name]).abs() for name in masks}

    return score


@public
def grasp(loss: LossOfParams, batches: Sequence[Batch], temperature: float = 200.0) -> Score:
    """GraSP: w · Hg, the gradient flow that a weight preserves (Wang et al. 2020, eq. 8).

    Theirs is -w · Hg, of which the largest are pruned. g is the gradient over all batches, H the Hessian of the mean
    loss; their product is the gradient of a gradient, so H is never formed. temperature: divides the network's outputs;
    200 as in the authors' code, where all classes are about equally likely, so that the preferences of an untrained
    network count for little. Returns a score. Raises UserError where `loss` is a function that doesn't know the outputs
    (not made by `loss_of`), unless temperature is 1.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> batches = [(torch.ones(3, 4), torch.tensor([0, 1, 1]))]
    >>> lf.count(lf.prune(density=0.5, score=lf.grasp(lf.loss_of(model, {}), batches))(lf.init(model)).masks)
    Count(kept=4, total=8)
    """
    loss = _tempered(loss, temperature)

    def score(params: Params, masks: Masks) -> Scores:
        params = apply_masks(params, masks)
        along = apply_masks(mean_gradient(loss, batches)(params, masks), masks)

        def change(batch: Batch) -> Params:
            # H g is the gradient of <gradient, g>, with g held constant.
            def inner(p: Params) -> Tensor:
                gradient = _grad(loss)(p, batch)
                return torch.stack([gradient_times_weight(gradient[name], along[name]).sum() for name in masks]).sum()

            return differentiated(loss, lambda: grad(inner)(params))

        with sdpa_kernel(SDPBackend.MATH):  # PyTorch's fused attention has no second derivative
            flow = _mean([change(batch) for batch in batches], masks)
        return {name: gradient_times_weight(flow[name], params[name]) for name in masks}

    return score


@public
def taylor(loss: LossOfParams, batches: Sequence[Batch]) -> Score:
    """Taylor: (g · w)², mean over batches; the squared first-order change of the loss (Molchanov et al. 2019, eq. 8).

    loss: (params, batch) -> scalar, as `loss_of` makes it. Returns a score. Raises UserError without a batch.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> batches = [(torch.ones(3, 4), torch.tensor([0, 1, 1]))]
    >>> lf.count(lf.prune(density=0.5, score=lf.taylor(lf.loss_of(model, {}), batches))(lf.init(model)).masks)
    Count(kept=4, total=8)
    """

    def score(params: Params, masks: Masks) -> Scores:
        params = apply_masks(params, masks)
        gradients = [gradient_of(loss, params, batch) for batch in batches]
        changes = [{name: gradient_times_weight(g[name], params[name]).square() for name in masks} for g in gradients]
        return _mean(changes, masks)

    return score


@public
def fisher(loss: LossOfParams, batches: Sequence[Batch]) -> Score:
    """Fisher: ½ F w², F the mean over examples of g²; the second-order change of the loss (Theis et al. 2018, eq. 7).

    The gradient of each example of the batches is needed, so `loss` is called under `vmap` on batches of one. A loss
    that `loss_of` made then uses batch norms' running statistics. Returns a score. Raises UserError without a batch.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> batches = [(torch.ones(3, 4), torch.tensor([0, 1, 1]))]
    >>> lf.count(lf.prune(density=0.5, score=lf.fisher(lf.loss_of(model, {}), batches))(lf.init(model)).masks)
    Count(kept=4, total=8)
    """
    by_example: Callable[[], LossOfParams] | None = getattr(loss, "by_example", None)
    loss = loss if by_example is None else by_example()

    def score(params: Params, masks: Masks) -> Scores:
        params = apply_masks(params, masks)

        def squares(x: Tensor, y: Tensor) -> Params:
            gradient = _grad(loss)(params, (x[None], y[None]))
            return {name: parts_squared(gradient[name]) for name in masks}

        def information(batch: Batch) -> Params:
            with sdpa_kernel(SDPBackend.MATH):  # the fused attention of a CPU has no rule for vmap
                try:
                    each = vmap(squares, randomness="different")(*batch)
                except RuntimeError:  # something in the network cannot be under vmap: one example after the other
                    each_one = zip(*batch, strict=True)
                    trees = [differentiated(loss, lambda x=x, y=y: squares(x, y)) for x, y in each_one]  # type: ignore[misc]
                    each = {name: torch.stack([tree[name] for tree in trees]) for name in masks}
            return {name: leaf.mean(0) for name, leaf in each.items()}

        mean = _mean([information(batch) for batch in batches], masks)
        check_reached(loss, lambda p: loss(p, clone(batches[0])), params, mean)
        return {name: gradient_times_weight(mean[name], parts_squared(params[name])) / 2 for name in masks}

    return score


@public
def movement(loss: LossOfParams, batches: Sequence[Batch], lr: float = 0.0) -> Score:
    """Movement: -Σ g · w over batches; weights that move away from zero remain (Sanh et al. 2020, eq. 3).

    loss: (params, batch) -> scalar, as `loss_of` makes it. lr: the rate of plain gradient descent from batch to batch;
    0 leaves the weights where they are. Returns a score. Raises UserError for a negative rate, or without a batch.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> batches = [(torch.ones(3, 4), torch.tensor([0, 1, 1]))]
    >>> lf.count(lf.prune(density=0.5, score=lf.movement(lf.loss_of(model, {}), batches))(lf.init(model)).masks)
    Count(kept=4, total=8)
    """

    def score(params: Params, masks: Masks) -> Scores:
        params = apply_masks(params, masks)
        total = {name: torch.zeros_like(params[name].real) for name in masks}
        for batch in batches:
            gradient = gradient_of(loss, params, batch)
            total = {name: total[name] - gradient_times_weight(gradient[name], params[name]) for name in masks}
            params = apply_masks({name: leaf - lr * gradient[name] for name, leaf in params.items()}, masks)
        return total

    return score


def _tempered(loss: LossOfParams, temperature: float) -> LossOfParams:
    at: Callable[[float], LossOfParams] | None = getattr(loss, "at_temperature", None)
    if at is not None:
        return at(temperature)
    if temperature != 1:
        raise UserError(
            f"temperature: {temperature:g} divides the network's outputs, which this loss doesn't expose; make it "
            "with lf.loss_of(model, buffers), or pass temperature=1"
        )
    return loss


@public
def mean_gradient(loss: LossOfParams, batches: Sequence[Batch]) -> Callable[[Params, Masks], Params]:
    """The mean gradient over batches at all prunable weights, pruned ones included, as RigL's growth needs it.

    loss: (params, batch) -> scalar, as `loss_of` makes it. Returns a function (params, masks) -> one leaf per mask.
    Raises UserError without a batch.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> batches, state = [(torch.ones(3, 4), torch.tensor([0, 1, 1]))], lf.init(model)
    >>> lf.mean_gradient(lf.loss_of(model, {}), batches)(state.params, state.masks)["weight"].shape
    torch.Size([2, 4])
    """

    def mean(params: Params, masks: Masks) -> Params:
        params = apply_masks(params, masks)
        return _mean([gradient_of(loss, params, batch) for batch in batches], masks)

    return mean


def gradient_in_training(loss: LossOfParams, batch: Batch) -> Callable[[Params, Masks], Params]:
    """As `mean_gradient` of one batch, of a network that trains: the same bits in a third of the time.

    By autograd itself, without what `torch.func` adds, which the network's training has been through. What autograd
    refuses goes to `mean_gradient`, whose error names the loss and the line.
    """

    def gradient(params: Params, masks: Masks) -> Params:
        given, its_batch = _apart(loss, (apply_masks(params, masks), batch))
        leaves = {name: leaf.detach().requires_grad_() for name, leaf in given.items()}
        try:
            with torch.enable_grad():
                found = torch.autograd.grad(loss(leaves, its_batch), list(leaves.values()), materialize_grads=True)
        except RuntimeError:
            return mean_gradient(loss, [batch])(params, masks)
        return _mean([dict(zip(leaves, found, strict=True))], masks)

    return gradient


def _mean(trees: Sequence[Params], masks: Masks) -> Params:
    if len(trees) == 1:
        return {name: trees[0][name] + 0.0 for name in masks}  # as a sum, in which -0 becomes 0
    return {name: torch.stack([tree[name] for tree in trees]).mean(0) for name in masks}


def gradient_of(loss: LossOfParams, params: Params, batch: Batch) -> Params:
    """The gradient at the params. Raises UserError where there is none, or the loss depends on no parameter."""
    found = differentiated(loss, lambda: _grad(loss)(params, batch))
    check_reached(loss, lambda p: loss(p, clone(batch)), params, found)
    return found


def _grad(loss: LossOfParams) -> Callable[[Params, Batch], Params]:
    """The gradient of a loss, which is called at the params and with the batch, or copies of both."""
    return lambda params, batch: grad(loss)(*_apart(loss, (params, batch)))


def _apart(loss: LossOfParams, arguments: tuple[Params, Batch]) -> tuple[Params, Batch]:
    """Arguments of a loss that are nobody else's, unless it is known to write into nothing."""
    return arguments if getattr(loss, "tidy", False) else clone(arguments)  # True of most that `loss_of` made


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
