"""Masks held on the parameters of somebody's module: on gradients where they arise, on weights where need be."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from lthfunc.loops.layer_mask import LayerMask, has_kernels
from lthfunc.loops.second_moments import SecondMoments
from lthfunc.trees.types import Masks, Params

#: Steps after which weights are looked at for writes that PyTorch doesn't count, of `weight.data.copy_`.
_EVERY = 100


class HeldMasks:
    """Masks of parameters, and the hooks that hold them.

    A gradient is masked as soon as it is accumulated, so that clipping sees what the optimiser sees. Weights whose
    gradients and moments are zero stay zero in the elementwise optimisers of PyTorch, so that one product with the
    masks is all that a step costs.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        names: tuple[str, ...],
        optimizers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self._params = {name: params[name] for name in names}
        self.masks: Masks = {name: torch.ones_like(leaf, dtype=torch.bool) for name, leaf in self._params.items()}
        self._layers: dict[str, LayerMask] = {}  # of those with zeros
        self._kernels = has_kernels()
        self._moments = SecondMoments(optimizers, self._params)
        self._optimizers, self._loaded = optimizers, False
        self._leaves: list[nn.Parameter] = []  # the weights of those layers
        self._versions: list[int] = []  # as the last step left them
        self._unseen = 0  # steps since weights were looked at
        self._gradients = {name: _Gradient(leaf) for name, leaf in self._params.items()}
        self._handles: list[RemovableHandle] = [
            leaf.register_post_accumulate_grad_hook(self._gradients[name].accumulated)
            for name, leaf in self._params.items()
        ]
        self._handles += [each.register_load_state_dict_post_hook(self._after_load) for each in optimizers]

    def set(self, masks: Masks) -> None:
        """Hold other masks from now on, and set what they prune to zero. A layer without zeros costs nothing."""
        self.settle()
        with torch.no_grad():
            self.masks = {name: masks[name].to(leaf.device) for name, leaf in self._params.items()}
            self._layers = {
                name: LayerMask(self.masks[name], leaf, self._kernels)
                for name, leaf in self._params.items()
                if not bool(self.masks[name].all())
            }
            for name in self._layers:
                self._params[name].copy_(torch.where(self.masks[name], self._params[name], 0))
        for name, gradient in self._gradients.items():
            gradient.mask = self._layers.get(name)
        self._leaves = [self._params[name] for name in self._layers]
        self._versions = self._now()

    def wait(self, waits: bool) -> None:
        """Whether gradients stay whole until `mask_gradients`."""
        for gradient in self._gradients.values():
            gradient.waits = waits

    def mask_gradients(self) -> None:
        """Before a step: mask what reached a gradient by another way than a backward pass, or was changed since."""
        self._unseen += 1
        if self._loaded or self._versions != self._now() or (self._unseen >= _EVERY and self._are_written()):
            self._prune_again()
        self._moments.lift(self._layers)
        for gradient in self._gradients.values():
            gradient.check()

    def stepped(self, *, mixes: bool) -> None:
        """After a step. mixes: whether it may have moved pruned weights, which are set to zero again."""
        if mixes:
            for name, mask in self._layers.items():
                mask.multiply(self._params[name].detach())
        self._versions = self._now()

    def _now(self) -> list[int]:
        """What changes with writes into the weights of layers with zeros, but those of `weight.data.copy_`."""
        return [leaf._version for leaf in self._leaves] + [leaf.data_ptr() for leaf in self._leaves]

    def _are_written(self) -> bool:
        """Whether a pruned weight is not zero, which takes passes over the weights, so not in every step."""
        self._unseen = 0
        for name, mask in self._layers.items():
            leaf = self._params[name].detach()
            pruned = leaf.clone()
            mask.multiply(pruned)
            if not torch.equal(pruned, leaf):
                return True
        return False

    def _after_load(self, optimizer: torch.optim.Optimizer) -> None:
        self._loaded = True

    def _prune_again(self) -> None:
        """Set pruned weights and their moments to zero, which somebody has written to since the last step.

        Here and not as it happens, since a checkpoint may have other masks, which are loaded after its weights.
        """
        written = {}
        with torch.no_grad():
            for name, mask in self._layers.items():
                leaf = self._params[name].detach()
                before = int(leaf.count_nonzero())
                mask.multiply(leaf)
                written[name] = before - int(leaf.count_nonzero())
                for optimizer in self._optimizers:
                    for value in optimizer.state.get(self._params[name], {}).values():
                        if isinstance(value, torch.Tensor) and value.shape == leaf.shape:
                            mask.multiply(value)
        self._loaded = False
        name = max(written, key=lambda each: written[each], default="")
        if name and written[name]:
            warnings.warn(
                f"attach: {written[name]:,} pruned weights of {name} were written to, perhaps by load_state_dict; "
                "they are zero again",
                stacklevel=5,
            )

    def whole_gradients(self) -> Params:
        """A copy of the gradients; zeros where there is none."""
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach().clone()
            for name, leaf in self._params.items()
        }

    def settle(self) -> None:
        """Set the moments of pruned weights to zero, which they may not quite be between two steps."""
        self._moments.settle()

    def remove(self) -> None:
        """Remove the hooks."""
        self._moments.remove()
        for handle in self._handles:
            handle.remove()


class _Gradient:
    """The gradient of a parameter, and whether it has been masked as it is now. Little is done here, in every step."""

    __slots__ = ("_param", "_seen", "_version", "mask", "waits")

    def __init__(self, param: nn.Parameter) -> None:
        self._param, self._seen, self._version = param, 0, 0  # the id of what was masked, and which state of it
        self.mask: LayerMask | None = None
        self.waits = False

    def accumulated(self, param: Any) -> None:
        if self.mask is not None and not self.waits:
            grad = param.grad
            self.mask.multiply(grad)
            self._seen, self._version = id(grad), grad._version

    def check(self) -> None:
        if self.mask is not None:
            grad = self._param.grad
            if grad is not None and (self._version != grad._version or self._seen != id(grad)):
                with torch.no_grad():
                    self.mask.multiply(grad)
            self._seen = 0
