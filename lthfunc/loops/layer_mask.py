"""A layer's mask as a training step applies it to gradients, weights and moments, in place."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lthfunc.sparse.kernels.build import is_built, load_kernels
from lthfunc.sparse.tile_buffers import LANES

#: Elements from which on a kernel pays: a call takes some microseconds longer than one of PyTorch.
_LARGE = 8192


@functools.cache
def has_kernels() -> bool:
    """Whether the kernels are there, loaded; they are not built for this."""
    found = is_built()
    if found:
        load_kernels()
    return found


class LayerMask:
    """A mask for tensors shaped like a parameter, in one pass over their memory.

    The kernels read the mask as bits, in half the time of PyTorch's product with floats, which has the same bits and
    serves all other devices, types and layouts.
    """

    def __init__(self, mask: Tensor, param: Tensor, kernels: bool) -> None:
        self._mask, self._param, self._strides = mask, param, param.stride()
        self._kept: Tensor | None = None
        self._pruned: Tensor | None = None
        lies = sorted(range(param.ndim), key=param.stride, reverse=True)  # channels last, say
        dense = param.permute(lies).is_contiguous()
        fits = (
            kernels
            and dense
            and param.numel() >= _LARGE
            and param.device.type == "cpu"
            and param.dtype is torch.float32
        )
        self._words = _words(mask.permute(lies)) if fits else None
        if fits:  # to look one up takes a third of the time of a call
            self._multiply, self._add = torch.ops.lthfunc.mask_.default, torch.ops.lthfunc.add_pruned_.default

    def multiply(self, tensor: Tensor) -> None:
        """Set what is pruned to zero (NaN stays NaN)."""
        if self._fits(tensor):
            self._multiply(tensor, self._words)
            return
        if self._kept is None:
            self._kept = self._as_param(self._mask)
        tensor.mul_(self._kept)

    def add_to_pruned(self, tensor: Tensor, number: float) -> None:
        """Add a number to what is pruned."""
        if self._fits(tensor):
            self._add(tensor, self._words, number)
            return
        if self._pruned is None:
            self._pruned = self._as_param(~self._mask)
        tensor.add_(self._pruned, alpha=number)

    def _fits(self, tensor: Tensor) -> bool:
        # A tensor with a graph (create_graph=True) takes an operation that the graph records.
        return (
            self._words is not None
            and tensor.stride() == self._strides
            and tensor.dtype is torch.float32
            and not tensor.requires_grad
        )

    def _as_param(self, mask: Tensor) -> Tensor:
        """As the parameter lies in memory, in its dtype: a product of like tensors is the fastest."""
        return torch.empty_like(self._param).copy_(mask)


def _words(mask: Tensor) -> Tensor:
    """int32 words: bit k of word w is that of element 16 w + k."""
    bits = torch.nn.functional.pad(mask.flatten().int(), (0, -mask.numel() % LANES)).view(-1, LANES)
    return (bits << torch.arange(LANES, dtype=torch.int32)).sum(1, dtype=torch.int32)
