"""A module's parameters on their survivors: each masked one becomes a vector, in the module itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.argument_hints import described
from lthfunc.errors import UserError
from lthfunc.loops.torch_optimizers import owned
from lthfunc.printable import dtype_name, first_few
from lthfunc.sparse.partitioned import Weights
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.ops import scattered
from lthfunc.trees.types import Buffers, Masks, Params


class Survivors:
    """The parameters and buffers of a module, wherever it holds them.

    Parameters with a mask are vectors of their survivors, in the order of the flattened leaf. shapes: of all parameters
    when they are dense, by first name. positions: of the survivors. names: each name of a leaf with its first name.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names = first_names(module)
        self.shapes = {name: leaf.shape for name, leaf in module.named_parameters()}
        self.positions: dict[str, Tensor] = {}
        self._params = self._places(module, "_parameters")
        self._buffers = self._places(module, "_buffers")

    def _places(self, module: nn.Module, kind: str) -> dict[str, tuple[dict[str, Any], str]]:
        """First name -> (dictionary, key), where a module holds the leaf."""
        parts = dict(module.named_modules(remove_duplicate=False))
        found = {}
        for name, first in self.names.items():
            owner, _, key = name.rpartition(".")
            held = getattr(parts[owner], kind)
            if name == first and held.get(key) is not None:
                found[name] = held, key
        return found

    def weights(self) -> Weights:
        """The tensors of now."""
        return Weights(
            {name: held[key] for name, (held, key) in self._params.items()},
            {name: held[key] for name, (held, key) in self._buffers.items()},
            self.positions,
            self.shapes,
        )

    def dense(self) -> tuple[Params, Buffers]:
        """(parameters with zeros where they are pruned, buffers): copies. Frozen parameters are among the buffers."""
        weights = self.weights()
        leaves = {name: weights.dense(name).detach().clone() for name in weights.params}
        trained = {name: leaf for name, leaf in leaves.items() if weights.params[name].requires_grad}
        buffers = {name: leaf.detach().clone() for name, leaf in weights.buffers.items()}
        return trained, {**buffers, **{name: leaf for name, leaf in leaves.items() if name not in trained}}

    @property
    def masks(self) -> Masks:
        """The masks of now."""
        return {
            name: scattered(torch.ones_like(kept, dtype=torch.bool), kept, self.shapes[name])
            for name, kept in self.positions.items()
        }

    def check(self, function: str, masks: Masks) -> None:
        """Raise UserError for masks that are not of this module."""
        for name, mask in masks.items():
            if name not in self.shapes:
                first = self.names.get(name)
                if first in self.shapes:
                    raise UserError(f"{function}: masks: {name!r} is shared; its mask has the name {first!r}")
                known = first_few(list(self.shapes))
                raise UserError(f"{function}: masks: {name!r} is not a parameter of this network ({known})")
            shape = tuple(self.shapes[name])
            if tuple(mask.shape) != shape:
                shapes = f"of shape {tuple(mask.shape)}, the parameter {shape}"
                raise UserError(f"{function}: masks: {name!r} is {shapes}")
            if mask.dtype != torch.bool:
                raise UserError(f"{function}: masks: {name!r} is {dtype_name(mask.dtype)} (expected bool)")
            if len(shape) < 2 and not bool(mask.all()):
                raise UserError(f"{function}: masks: {name!r} has one dimension; only matrices and kernels are pruned")

    def set(self, masks: Masks, optimizers: Sequence[torch.optim.Optimizer] = ()) -> None:
        """Hold other masks. Values, gradients and moments of weights that remain are kept; those of others are zero."""
        current = self.weights().params
        positions = {
            name: mask.flatten().nonzero().flatten().cpu() for name, mask in masks.items() if len(self.shapes[name]) > 1
        }
        for name in positions:
            for optimizer in optimizers:
                _check_state(optimizer, name, current[name])
        for name, kept in positions.items():
            param: Any = current[name]
            move = self._move(name, kept)
            for optimizer in optimizers:
                state = optimizer.state.get(param, {})
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.shape == param.shape:
                        state[key] = move(value)
            grad, param.grad = param.grad, None
            value = move(param.detach())
            # Another dtype for a moment: it makes autograd forget the shape that it has noted for gradients.
            param.data = param.data.double()
            param.data = value
            if grad is not None:
                param.grad = move(grad)
            self.positions[name] = kept

    def _move(self, name: str, kept: Tensor) -> Callable[[Tensor], Tensor]:
        """From a leaf (or a moment) as it is now to the vector of other survivors."""
        before, shape = self.positions.get(name), self.shapes[name]

        def moved(leaf: Tensor) -> Tensor:
            dense = leaf if before is None else scattered(leaf, before, shape)
            return dense.reshape(-1).index_select(0, kept)

        return moved


def replace(module: nn.Module, leaves: Mapping[str, nn.Parameter]) -> None:
    """Put parameters, given by first names, wherever a module holds them."""
    parts = dict(module.named_modules(remove_duplicate=False))
    for name, first in first_names(module).items():
        if first in leaves:
            owner, _, key = name.rpartition(".")
            parts[owner]._parameters[key] = leaves[first]


def optimizers_of(given: Any, params: Mapping[str, Tensor]) -> Sequence[torch.optim.Optimizer]:
    """The optimisers of an argument. Raises UserError where they own none of the parameters."""
    found = () if given is None else tuple(given) if isinstance(given, (list, tuple)) else (given,)
    for each in found:
        if not isinstance(each, torch.optim.Optimizer):
            raise UserError(f"set_masks: optimizer must be a torch.optim.Optimizer, not {described(each)}")
    if found and not owned(found) & set(map(id, params.values())):
        raise UserError("set_masks: optimizer owns no parameter of this module; give the one that trains it")
    return found


def _check_state(optimizer: torch.optim.Optimizer, name: str, param: Tensor) -> None:
    """Raise UserError for an optimiser whose state cannot be told weight from weight."""
    for key, value in optimizer.state.get(param, {}).items():
        known = not isinstance(value, (Tensor, list, tuple, dict)) or (
            isinstance(value, Tensor) and (value.numel() <= 1 or value.shape == param.shape)
        )
        if not known:
            kind = type(optimizer).__name__
            raise UserError(
                f"set_masks: optimizer: {kind} keeps {key!r} of {name} for no single weights; make a new one instead"
            )
