"""The FLOPs of a network's matrix products and convolutions, by PyTorch's own counter."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lthfunc.trees.prunable import is_pure_module


def flops_of(module: nn.Module, shape: tuple[int, ...], *, tokens: bool = False) -> int:
    """FLOPs of one example, in the dtype and on the device of the parameters. tokens: whether inputs are int64."""
    return int(_counted(module, shape, tokens).get_total_flops())


def flops_by_module(module: nn.Module, shape: tuple[int, ...], *, tokens: bool = False) -> dict[str, int]:
    """FLOPs of one example in each submodule, by name; "" is the whole module."""
    counter = _counted(module, shape, tokens)
    root = f"{type(module).__name__}."
    found = {
        name.removeprefix(root): sum(operations.values())
        for name, operations in counter.get_flop_counts().items()
        if name.startswith(root)
    }
    return {**found, "": int(counter.get_total_flops())}


def flops_by_weight(
    module: nn.Module, shape: tuple[int, ...], sizes: Mapping[str, int], *, tokens: bool = False
) -> tuple[dict[str, float], int]:
    """(FLOPs of one example by weight, of the whole module). sizes: the weights, and how many numbers each has.

    A module with several of them, such as attention, shares its own among them by their sizes.
    """
    found, whole = flops_by_module(module, shape, tokens=tokens), dict[str, int]()
    for name, size in sizes.items():
        whole[_owner(name)] = whole.get(_owner(name), 0) + size
    shares = {name: found.get(_owner(name), 0) * size / max(1, whole[_owner(name)]) for name, size in sizes.items()}
    return shares, found[""]


def _owner(weight: str) -> str:
    return weight.rpartition(".")[0]


def _counted(module: nn.Module, shape: tuple[int, ...], tokens: bool) -> FlopCounterMode:
    leaf = next(module.parameters())
    if not is_pure_module(module):  # into its own parameters, say
        module = copy.deepcopy(module)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        module(torch.zeros(1, *shape, dtype=torch.int64 if tokens else leaf.dtype, device=leaf.device))
    return counter
