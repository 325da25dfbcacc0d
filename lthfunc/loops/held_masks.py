"""Masks held on the parameters of somebody's module: on gradients where they arise, on weights where need be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lthfunc.trees.types import Masks, Params


class HeldMasks:
    """Masks of parameters, and the hooks that hold them.

    A gradient is masked as soon as it is accumulated, so that clipping sees what the optimiser sees. Weights whose
    gradients and moments are zero stay zero in the elementwise optimisers of PyTorch, so that one product with the
    masks is all that a step costs.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], names: tuple[str, ...]) -> None:
        self._params = {name: params[name] for name in names}
        self.masks: Masks = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in self._params.items()}
        self._factors: Params = {}
        self._masked: dict[str, tuple[int, int]] = {}
        #: Whether gradients stay whole until `mask_gradients`.
        self.waits = False
        self._handles: list[RemovableHandle] = [
            leaf.register_post_accumulate_grad_hook(self._hook(name)) for name, leaf in self._params.items()
        ]

    def set(self, masks: Masks) -> None:
        """Hold other masks from now on, and set what they prune to zero. A layer without zeros costs nothing."""
        with torch.no_grad():
            self.masks = {name: masks[name].to(leaf.device) for name, leaf in self._params.items()}
            # As the parameter lies in memory (channels last), in its dtype: a product of like tensors is the fastest.
            self._factors = {
                name: torch.empty_like(leaf).copy_(self.masks[name])
                for name, leaf in self._params.items()
                if not bool(self.masks[name].all())
            }
            for name in self._factors:
                self._params[name].copy_(torch.where(self.masks[name], self._params[name], 0))

    def mask_gradients(self) -> None:
        """Mask what reached a gradient by another way than a backward pass, or was changed since."""
        with torch.no_grad():
            for name, factor in self._factors.items():
                grad = self._params[name].grad
                if grad is not None and self._masked.get(name) != (id(grad), grad._version):
                    grad.mul_(factor)
        self._masked.clear()

    def mask_weights(self) -> None:
        """Set pruned weights to zero again, after an optimiser that may have moved them."""
        if self._factors:
            with torch.no_grad():
                torch._foreach_mul_([self._params[name] for name in self._factors], list(self._factors.values()))

    def whole_gradients(self) -> Params:
        """A copy of the gradients; zeros where there is none."""
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach().clone()
            for name, leaf in self._params.items()
        }

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def masked(param: Any) -> None:
            factor = None if self.waits else self._factors.get(name)
            if factor is not None:
                grad = param.grad.mul_(factor)
                self._masked[name] = id(grad), grad._version

        return masked
