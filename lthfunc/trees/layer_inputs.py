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
from lthfunc.trees.prunable import is_transposed
from lthfunc.trees.types import Params
from lthfunc.trees.unfolding import unfolded

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: The arguments of operations that multiply inputs by a weight; Hugging Face's Conv1D uses `addmm`.
_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight"),
    torch.addmm: ("bias", "input", "weight"),
    **dict.fromkeys(
        (F.conv1d, F.conv2d, F.conv3d), ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    ),
}


class InputReader(TorchFunctionMode):
    """Within it, calls of a model with these params report the inputs of its layers.

    found: is called with a weight's name and rows of inputs, (groups, rows, features): (1, rows, features) of a linear
    layer; of a convolution those that it unfolds to, in chunks. A layer may be called more than once, and layers may
    share a weight.
    """

    def __init__(self, names: Collection[str], params: Params, found: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._names = {id(params[name]): name for name in names}
        self._found = found

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _ARGUMENTS:
            given = dict(zip(_ARGUMENTS[func], args, strict=False)) | dict(kwargs or {})
            if func is torch.addmm:
                given = {{"mat1": "input", "mat2": "weight"}.get(key, key): value for key, value in given.items()}
            name = self._names.get(id(given.get("weight")))
            if name is not None:
                for rows in _rows(func, given):
                    self._found(name, rows)
        return func(*args, **(kwargs or {}))


def _rows(func: Any, given: Mapping[str, Any]) -> Any:
    x, weight = given["input"], given["weight"]
    if func in (F.linear, torch.addmm):
        return [x.reshape(1, -1, x.shape[-1])]
    kernel = weight.shape[2:]

    def each(name: str, default: int) -> Any:
        value = given.get(name, default)
        return value if isinstance(value, str) else (value,) * len(kernel) if isinstance(value, int) else tuple(value)

    return unfolded(x, kernel, each("stride", 1), each("padding", 0), each("dilation", 1), given.get("groups", 1))


def layers_with_inputs(model: Model, convolutions: bool) -> tuple[str, ...]:
    """The prunable weights whose inputs can be read, in order: those of linear layers and convolutions only."""
    names = {id(leaf): name for name, leaf in model.evaluating.named_parameters()}
    found: set[str] = set()
    others: set[str] = set()
    for part in model.evaluating.modules():
        fits = isinstance(part, nn.Linear) or is_transposed(part) or (convolutions and isinstance(part, _CONVOLUTIONS))
        for own, leaf in part._parameters.items():
            if id(leaf) in names:
                (found if fits and own == "weight" else others).add(names[id(leaf)])
    return tuple(name for name in model.prunable if name in found - others)


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
