"""The layers of a module, what each reads, and modules with some of them replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lthfunc.execution.formats import Layer
from lthfunc.trees.types import Masks

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def layers_of(module: nn.Module, masks: Masks, x: Tensor) -> dict[str, Layer]:
    """Layers with a mask by name, with what each reads when the module is given `x`. Nothing is changed."""
    module = copy.deepcopy(module)
    found: dict[str, Layer] = {}
    hooks = []
    for name, part in module.named_modules():
        mask = masks.get(f"{name}.weight")
        if isinstance(part, _KINDS) and mask is not None:

            def note(part: nn.Module, inputs: tuple[Tensor, ...], name: str = name, mask: Tensor = mask) -> None:
                found[name] = Layer(name, part, mask, inputs[0])

            hooks.append(part.register_forward_pre_hook(note))
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    return found


def with_layers(module: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the module with the layers of these names replaced."""
    if not new:
        return module
    module = copy.deepcopy(module)
    for name, layer in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, layer)
    return module
