"""Weights as matrices (outputs, inputs), however their layers store them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.types import Masks, Params

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
#: With a parametrisation a weight belongs to a submodule of its layer.
_BELOW = ".parametrizations."


def matrices(module: nn.Module, params: Params, masks: Masks) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, values, mask) of each masked parameter under each of its names, as matrices on the CPU."""
    for name, first in first_names(module).items():
        if first in masks:
            layer = module.get_submodule(_owner(name))
            both = (params[first].detach().cpu(), masks[first].cpu())
            values, mask = (_matrix(layer, name, each) for each in both)
            yield name, values, mask


def as_parameter(module: nn.Module, name: str, params: Params, matrix: Tensor) -> Tensor:
    """A parameter as its layer stores it, from its matrix."""
    leaf = params[first_names(module)[name]]
    places = _matrix(module.get_submodule(_owner(name)), name, torch.arange(leaf.numel()).view(leaf.shape))
    return torch.empty(leaf.numel(), dtype=matrix.dtype).scatter(0, places.flatten(), matrix.flatten()).view(leaf.shape)


def _owner(name: str) -> str:
    before, below, _ = f".{name}".partition(_BELOW)
    return before.removeprefix(".") if below else name.rpartition(".")[0]


def _matrix(layer: nn.Module, name: str, leaf: Tensor) -> Tensor:
    if leaf.ndim < 2:
        return leaf.reshape(-1, 1)
    if isinstance(layer, _TRANSPOSED):  # (inputs, outputs of a group, places)
        groups = layer.groups
        grouped = leaf.reshape(groups, len(leaf) // groups, *leaf.shape[1:]).transpose(1, 2)
        return grouped.flatten(0, 1).flatten(1)
    if isinstance(layer, _TABLES) or _is_conv1d(layer):  # (inputs, outputs)
        return leaf.T
    return leaf.flatten(1)


def _is_conv1d(layer: nn.Module) -> bool:
    """Whether it is the linear layer of Hugging Face's GPT-2, whose weight is transposed."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")
