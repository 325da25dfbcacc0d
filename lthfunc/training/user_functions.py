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
from lthfunc.trees.ops import leaves
from lthfunc.trees.types import Params

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
        value: Any = call_user_function(f"--{kind}", name, lambda: function(outputs, targets, **context))
        if versions != [leaf._version for leaf in given]:
            raise UserError(f"--{kind}: {name!r} changes its arguments in place; return new tensors instead")
        if not isinstance(value, Tensor):
            raise UserError(f"--{kind}: {name!r} returned {a_or_an(type(value).__name__)}, not a scalar tensor")
        if value.ndim:
            raise UserError(f"--{kind}: {name!r} returned a tensor of shape {tuple(value.shape)}, not a scalar")
        if value.dtype == torch.bool or value.is_complex():
            raise UserError(f"--{kind}: {name!r} returned a number of type {value.dtype}, not a real one")
        return value

    call.__module__ = "lthfunc.training.user_functions"  # checked already
    return call


def checked_augment(function: Callable[..., Tensor] | None) -> Callable[..., Tensor] | None:
    """An augmentation that must return inputs of the same shape and dtype, and otherwise raises UserError."""
    if function is None or is_library_function(function):
        return function
    name = function_name(function)

    @wraps(function)
    def call(inputs: Tensor, *rest: Any) -> Tensor:
        shape, dtype = inputs.shape, inputs.dtype
        found: Any = call_user_function("augment", name, lambda: function(inputs, *rest))
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (shape, dtype):
            what = f"{dtype_and_shape(found)} for inputs of {dtype_and_shape(inputs)}"
            raise UserError(f"augment: {name!r} returned {what}; expected the same")
        return found

    return call


def checked_optimizer(optimizer: Optimizer) -> Optimizer:
    """An optimiser that must return params of the same shapes and dtypes, and otherwise raises UserError."""
    if is_library_function(optimizer.update):
        return optimizer
    name = function_name(optimizer.update)

    def update(grads: Params, state: Any, params: Params, step: Tensor) -> tuple[Params, Any]:
        return _pair(name, lambda: optimizer.update(grads, state, params, step), params)

    return optimizer._replace(update=update, init=lambda params: call_user_function(
        "--optimizer", function_name(optimizer.init), lambda: optimizer.init(params)
    ))  # fmt: skip


def checked_part(part: Part) -> Callable[[Params, Any, ChainContext], tuple[Params, Any]]:
    """The update of a user's part of a chain, held to the same."""
    return lambda tree, state, context: _pair(part.name, lambda: part.update(tree, state, context), tree)


def _pair(name: str, call: Callable[[], Any], like: Params) -> tuple[Params, Any]:
    """What an update returns: (a tree of the shapes and dtypes of `like`, a state)."""
    shapes = {key: (leaf.shape, leaf.dtype) for key, leaf in like.items()}
    result = call_user_function("--optimizer", name, call)
    if not isinstance(result, tuple) or len(result) != 2:
        raise UserError(f"--optimizer: {name!r} returned {a_or_an(type(result).__name__)}, not (params, state)")
    new, after = result
    if not isinstance(new, dict) or new.keys() != shapes.keys():
        missing = sorted(shapes.keys() - new.keys()) if isinstance(new, dict) else []
        what = f"params without {missing[0]}" if missing else f"a {type(new).__name__} that is not like the params"
        raise UserError(f"--optimizer: {name!r} returned {what}")
    for key, expected in shapes.items():
        leaf = new[key]
        if not isinstance(leaf, Tensor) or (leaf.shape, leaf.dtype) != expected:
            found, before = dtype_and_shape(leaf), dtype_and_shape(like[key])
            raise UserError(f"--optimizer: {name!r} returned {found} for {key}, not {before}")
    return new, after
