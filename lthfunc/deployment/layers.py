"""The layers of a module, what each reads, and modules with some of them replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from lthfunc.deployment.formats import MaskedLayer
from lthfunc.trees.layer_inputs import last_inputs
from lthfunc.trees.types import Masks

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def layers_of(module: nn.Module, masks: Masks, x: Tensor) -> dict[str, MaskedLayer]:
    """Layers with a mask by name, with what each reads when the module is given `x`. Nothing is changed."""
    parts = {
        name: part for name, part in module.named_modules() if isinstance(part, _KINDS) and f"{name}.weight" in masks
    }
    read = last_inputs(module, parts, lambda copied: copied(x.clone()))
    return {name: MaskedLayer(name, parts[name], masks[f"{name}.weight"], given) for name, given in read.items()}


def with_layers(module: nn.Module, new: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of the module with the layers of these names replaced."""
    if not new:
        return module
    module = copy.deepcopy(module)
    for name, layer in new.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, layer)
    return module
