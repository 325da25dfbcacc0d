"""The inputs that layers get when a network is called."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lthfunc.trees.model import Model
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.ops import clone
from lthfunc.trees.prunable import is_transposed
from lthfunc.trees.types import Buffers, Params


def linear_inputs(model: Model, params: Params, buffers: Buffers, x: Tensor) -> dict[str, list[Tensor]]:
    """The inputs of each prunable linear weight in evaluation mode: name -> (..., features) for each use.

    A layer may be called more than once, and layers may share a weight. A weight that an embedding shares is left out.
    No argument is changed. Raises UserError where the network rejects the inputs.
    """
    params, buffers, x = clone((params, buffers, x))  # whatever the module does to them
    reading = _Reading({id(params[name]): name for name in _multiplied(model)})
    with taking_inputs(model.name, x.shape[1:], model.evaluating), torch.no_grad(), reading:
        functional_call(model.evaluating, {**params, **buffers}, (x,))
    return reading.found


class _Reading(TorchFunctionMode):
    """Records inputs that are multiplied by weights: in `linear`, and in `addmm` as Hugging Face's Conv1D does."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: dict[str, list[Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (F.linear, torch.addmm):
            named = dict(zip(_ARGUMENTS[func], args, strict=False)) | dict(kwargs or {})
            name = self._names.get(id(named.get(_ARGUMENTS[func][-1])))
            if name is not None:
                self.found.setdefault(name, []).append(named[_ARGUMENTS[func][-2]].clone())
        return func(*args, **(kwargs or {}))


#: Their arguments; the last two are the input and the weight.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {F.linear: ("input", "weight"), torch.addmm: ("input", "mat1", "mat2")}


def last_inputs(module: nn.Module, names: Collection[str], call: Callable[[nn.Module], Any]) -> dict[str, Tensor]:
    """The last inputs of the submodules of these names, when a copy of the module is called."""
    module = copy.deepcopy(module)
    read: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[..., None]:
        return lambda layer, inputs: read.update({name: inputs[0]})

    for name in names:
        module.get_submodule(name).register_forward_pre_hook(reader(name))
    with torch.no_grad():
        call(module)
    return read


def _multiplied(model: Model) -> set[str]:
    """The prunable weights that belong to linear layers only."""
    names = {id(leaf): name for name, leaf in model.evaluating.named_parameters()}
    found: set[str] = set()
    others: set[str] = set()
    for part in model.evaluating.modules():
        for own, leaf in part._parameters.items():
            if id(leaf) in names:
                linear = own == "weight" and (isinstance(part, nn.Linear) or is_transposed(part))
                (found if linear else others).add(names[id(leaf)])
    return (found - others) & set(model.prunable)
