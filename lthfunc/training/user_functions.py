"""Checks of a user's losses, metrics, augmentations and optimisers: errors of one line that name the function."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.printable import a_or_an, dtype_and_shape
from lthfunc.tracebacks import call_user_function, function_name, is_library_function
from lthfunc.training.losses import Loss
from lthfunc.training.optimizers import Optimizer
from lthfunc.trees.augmenting import Augment, changes_targets, is_library_augment
from lthfunc.trees.ops import leaves
from lthfunc.trees.types import Buffers, Params

if TYPE_CHECKING:
    from lthfunc.training.chain import ChainContext, Part


def checked_loss(kind: str, function: Loss) -> Loss:
    """A loss or metric (`kind`) that must return one real number and leave its arguments unchanged.

    Raises UserError, when it is called, if it doesn't.
    """
    if is_library_function(function):
        return function
    name = function_name(function)

    @wraps(function)
    def call(outputs: Any, targets: Any, **context: Any) -> Tensor:
        given: list[Any] = [leaf for leaf in leaves((outputs, targets, context)) if isinstance(leaf, Tensor)]
        versions = [leaf._version for leaf in given]
        value: Any = call_user_function(kind, name, lambda: function(outputs, targets, **context))
        if versions != [leaf._version for leaf in given]:
            raise UserError(f"{kind}: {name!r} changes its arguments in place; return new tensors instead")
        if not isinstance(value, Tensor):
            raise UserError(f"{kind}: {name!r} returned {a_or_an(type(value).__name__)}, not a scalar tensor")
        if value.ndim:
            raise UserError(f"{kind}: {name!r} returned a tensor of shape {tuple(value.shape)}, not a scalar")
        if value.dtype == torch.bool or value.is_complex():
            raise UserError(f"{kind}: {name!r} returned a number of type {value.dtype}, not a real one")
        return value

    call.__module__ = "lthfunc.training.user_functions"  # checked already
    return call


def checked_augment(function: Augment | None) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """An augmentation as (inputs, targets, key, …) -> (inputs, targets), whether or not it changes targets.

    A user's raises UserError where inputs come back with another shape or dtype, or there is another number of targets.
    """
    if function is None:
        return None
    of_both = function if changes_targets(function) else _on_inputs(function)
    if is_library_augment(function):
        return of_both
    name = function_name(function)

    def call(inputs: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        shape, dtype, count = inputs.shape, inputs.dtype, len(targets)
        pair: Any = call_user_function("augment", name, lambda: of_both(inputs, targets, *rest))
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(f"augment: {name!r} returned {a_or_an(type(pair).__name__)}, not (inputs, targets)")
        found, after = pair
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (shape, dtype):
            what = f"{dtype_and_shape(found)} for inputs of {dtype_and_shape(inputs)}"
            raise UserError(f"augment: {name!r} returned {what}; expected the same")
        if not isinstance(after, Tensor) or after.shape[:1] != (count,):
            raise UserError(f"augment: {name!r} returned {dtype_and_shape(after)} as targets of {count} inputs")
        return found, after

    return call


def _on_inputs(function: Augment) -> Augment:
    return lambda inputs, targets, *rest: (function(inputs, *rest), targets)


def checked_optimizer(optimizer: Optimizer) -> Optimizer:
    """An optimiser that must return params of the same shapes and dtypes, and otherwise raises UserError."""
    if is_library_function(optimizer.update):
        return optimizer
    name = function_name(optimizer.update)

    def update(grads: Params, state: Any, params: Params, step: Tensor) -> tuple[Params, Any]:
        return _pair(name, lambda: optimizer.update(grads, state, params, step), params)

    first = function_name(optimizer.init)
    return optimizer._replace(update=update, init=lambda params: _begun(first, lambda: optimizer.init(params)))


def checked_start(part: Part) -> Callable[[Params, Buffers], Any]:
    """The init of a user's part of a chain: tensors."""
    return lambda params, buffers: _begun(part.name, lambda: part.init(params, buffers))


def _begun(name: str, call: Callable[[], Any]) -> Any:
    return _state(name, call_user_function("optimizer", name, call))


def _state(name: str, state: Any) -> Any:
    other = next((leaf for leaf in leaves(state) if not isinstance(leaf, Tensor)), None)
    if other is not None:
        what = a_or_an(type(other).__name__)
        raise UserError(f"optimizer: {name!r} has {what} in its state (expected tensors, in tuples and dicts)")
    return state


def checked_part(part: Part) -> Callable[[Params, Any, ChainContext], tuple[Params, Any]]:
    """The update of a user's part of a chain, held to the same."""
    return lambda tree, state, context: _pair(part.name, lambda: part.update(tree, state, context), tree)


def _pair(name: str, call: Callable[[], Any], like: Params) -> tuple[Params, Any]:
    """What an update returns: (a tree of the shapes and dtypes of `like`, a state)."""
    shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in like.items()}
    result = call_user_function("optimizer", name, call)
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(f"optimizer: {name!r} returned {a_or_an(type(result).__name__)}, not (params, state)")
    new, after = result
    if not isinstance(new, dict) or new.keys() != shapes.keys():
        missing = sorted(shapes.keys() - new.keys()) if isinstance(new, dict) else []
        what = f"params without {missing[0]}" if missing else f"a {type(new).__name__} that is not like the params"
        raise UserError(f"optimizer: {name!r} returned {what}")
    for key, expected in shapes.items():
        leaf = new[key]
        if not isinstance(leaf, Tensor) or (leaf.shape, leaf.dtype) != expected:
            found, before = dtype_and_shape(leaf), dtype_and_shape(like[key])
            raise UserError(f"optimizer: {name!r} returned {found} for {key}, not {before}")
    return new, _state(name, after)
