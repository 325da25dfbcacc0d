"""Optimisers made of parts, as optax's are: what changes the gradient, the optimiser, and what follows the weights.

Every part is a pair of pure functions, and what one returns the next one gets. The first gets the masked gradient, the
optimiser makes new weights of it, and what the last part returns are the weights of the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.tracebacks import is_library_function
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.user_functions import checked_optimizer, checked_part, checked_start
from lthfunc.trees.types import Buffers, Masks, Params


def _no_gradient(params: Params) -> Params:
    raise UserError("chain: a part asks for a second gradient, which only a training step gives (lf.make_train_step)")


class ChainContext(NamedTuple):
    """What a part of a chain may read besides what it changes.

    params: the weights before the update. step: int64 scalar, the steps taken before. masks: of the weights, bool or
    floating. buffers: after the step's forward pass; None where they are not known. gradient: params -> the masked
    gradient of the same batch there. total: a scalar -> its sum over all ranks that hold a part of the weights.
    """

    params: Params
    step: Tensor
    masks: Masks = {}  # noqa: RUF012 (nothing changes it)
    buffers: Buffers | None = None
    gradient: Callable[[Params], Params] = _no_gradient
    total: Callable[[Tensor], Tensor] = lambda value: value


class Part(NamedTuple):
    """A part of a `chain`: two pure functions.

    init: (params, buffers) -> its state: tensors, in tuples and dicts; ``()`` for none. update: (tree, state, context)
    -> (tree, state), where the tree is the gradient or, with `follows`, the new weights; context: `ChainContext`.
    follows: whether it comes after the optimiser. numbers: set by the parts of this library; it lets an engine replace
    `update` by faster code with the same effect. mixes: whether what becomes of a weight depends on which others there
    are, so that the part must see all of a layer (`Optimizer`).

    >>> centred = lf.Part(  # gradients without their mean (Yong et al. 2020)
    ...     "centred",
    ...     init=lambda params, buffers: (),
    ...     update=lambda grads, state, context: ({name: g - g.mean() for name, g in grads.items()}, state),
    ...     mixes=True,
    ... )
    >>> len(lf.chain(centred, lf.adam(1e-3)).parts)
    2
    """

    name: str
    init: Callable[[Params, Buffers], Any]
    update: Callable[[Params, Any, ChainContext], tuple[Params, Any]]
    follows: bool = False
    numbers: Any = None
    mixes: bool = False


class ChainState(NamedTuple):
    """parts: the states of a chain's parts, in their order."""

    parts: tuple[Any, ...]


@public
def chain(*parts: Part | Optimizer) -> Optimizer:
    """Make one optimiser of several parts, each of which gets what the one before it returned.

    parts: those that change the gradient, such as `clip_by_global_norm`; one optimiser; those that follow the weights,
    such as `ema`. A chain may be a part of another. The gradient is masked before the first part, and pruned weights
    stay zero in all of them. Returns the optimiser; its state is a `ChainState`. Raises UserError where there is not
    one optimiser, or a part is on the wrong side of it.

    >>> optimizer = lf.chain(lf.clip_by_global_norm(1.0), lf.sgd(0.1))
    >>> params = {"w": torch.tensor([1.0, 1.0])}
    >>> optimizer.update({"w": torch.tensor([6.0, 8.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.9400, 0.9200])}
    """
    flat = tuple(each for part in parts for each in (part.parts if isinstance(part, Optimizer) else ()) or (part,))
    _check_order(flat)
    starts, updates = [_start(part) for part in flat], [_checked(part) for part in flat]

    def init(params: Params, buffers: Buffers | None = None) -> ChainState:
        return ChainState(tuple(
            start(params) if isinstance(part, Optimizer) else start(params, buffers or {})
            for part, start in zip(flat, starts, strict=True)
        ))  # fmt: skip

    def update(
        grads: Params, state: ChainState, params: Params, step: Tensor, context: ChainContext | None = None
    ) -> tuple[Params, ChainState]:
        now = ChainContext(params, step) if context is None else context
        tree, after = grads, []
        for one, before in zip(updates, state.parts, strict=True):
            tree, following = one(tree, before, now)
            after.append(following)
        return tree, ChainState(tuple(after))

    return Optimizer(init, update, mixes=any(part.mixes for part in flat), parts=flat)


def updated(optimizer: Optimizer, grads: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
    """(new params, new state), pruned weights zero: an optimiser's update with all that it may ask for."""
    if optimizer.parts:
        return optimizer.update(grads, state, context.params, context.step, context)
    params, state = optimizer.update(grads, state, context.params, context.step)
    return (masked(params, context.masks) if optimizer.mixes else params), state


def masked(tree: Params, masks: Masks) -> Params:
    """The gradient, or weights, where weights remain; zero elsewhere."""
    return {name: leaf * masks[name].to(leaf.dtype) if name in masks else leaf for name, leaf in tree.items()}


def is_library_optimizer(optimizer: Optimizer) -> bool:
    """Whether all parts of an optimiser are this library's, which are known to write into nothing."""
    return all(is_library_function(part.update) for part in (optimizer, *optimizer.parts))


def numbers_of(optimizer: Optimizer) -> list[Any]:
    """What an optimiser's parts tell engines, in their order; None for a part that tells nothing."""
    return [part.numbers for part in optimizer.parts or (optimizer,)]


def _start(part: Part | Optimizer) -> Callable[..., Any]:
    """What gives a part's first state, held to its promises if it isn't this library's."""
    if isinstance(part, Optimizer):
        return checked_optimizer(part).init
    return part.init if is_library_function(part.init) else checked_start(part)


def _checked(part: Part | Optimizer) -> Callable[[Params, Any, ChainContext], tuple[Params, Any]]:
    """A part's update, in one form. What isn't this library's is held to its promises, and masked."""
    if isinstance(part, Optimizer):
        inner = checked_optimizer(part)
        return lambda grads, state, context: updated(inner, grads, state, context)
    if is_library_function(part.update):
        return part.update
    own = checked_part(part)

    def update(tree: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        changed, state = own(tree, state, context)
        return masked(changed, context.masks), state

    return update


def _check_order(parts: Sequence[Part | Optimizer]) -> None:
    places = [place for place, part in enumerate(parts) if isinstance(part, Optimizer)]
    if len(places) != 1:
        raise UserError(f"chain: takes one optimiser, such as lf.adam(1e-3), not {len(places) or 'none'}")
    for place, part in enumerate(parts):
        if isinstance(part, Part) and any(
            part.name == other.name for other in parts[:place] if isinstance(other, Part)
        ):
            raise UserError(f"chain: {part.name} is given twice")
        if isinstance(part, Part) and part.follows != (place > places[0]):
            side = "the weights, so it comes after" if part.follows else "the gradient, so it comes before"
            raise UserError(f"chain: {part.name} works on {side} the optimiser")
