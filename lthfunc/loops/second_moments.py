"""Second moments of pruned weights, which unfused optimisers of PyTorch take slow square roots of on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lthfunc.loops.layer_mask import LayerMask
from lthfunc.loops.torch_optimizers import mixes

#: Optimisers that take the root of a second moment itself (Adadelta adds epsilon before, Adamax takes none).
_ROOTS = (torch.optim.Adam, torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Adagrad)
#: What they call it.
_KEYS = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum")
#: Small beside every epsilon, and far from numbers that float32 denormalises, also after a step's decay.
_TINY = 1e-30


#: Steps after which it is added again: each step multiplies it by beta2.
_EVERY = 100


class SecondMoments:
    """Keeps the second moments of pruned weights a little above zero while steps are taken.

    MKL's square root takes a slow path for each zero, fifty times as long as for another number, so that a step of
    unfused Adam on a pruned LeNet-300-100 takes twice as long. What a pruned weight's first moment, zero, is divided by
    doesn't matter to any weight. A `state_dict` has zeros.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], params: Mapping[str, Tensor]) -> None:
        names = {id(param): name for name, param in params.items()}
        slow = [optimizer for optimizer in optimizers if isinstance(optimizer, _ROOTS) and not mixes(optimizer)]
        self._params = [
            (optimizer, names[id(param)], param)
            for optimizer in (slow if torch.backends.mkl.is_available() else ())
            for group in optimizer.param_groups
            if not group.get("fused")
            for param in group["params"]
            if id(param) in names and param.device.type == "cpu" and param.dtype in (torch.float32, torch.float64)
        ]
        self._lifted: list[tuple[LayerMask, Tensor]] = []
        self._due = 0
        self._handles = [
            handle
            for optimizer in slow
            for handle in (
                optimizer.register_state_dict_pre_hook(lambda _: self.settle()),
                optimizer.register_load_state_dict_post_hook(lambda _: self.settle()),
            )
        ]

    def lift(self, masks: Mapping[str, LayerMask]) -> None:
        """Before a step."""
        if not self._params:
            return
        self._due -= 1
        if self._due > 0:
            return
        self._lifted = [
            (masks[name], state[key])
            for optimizer, name, param in self._params
            if name in masks
            for state in (optimizer.state.get(param, {}),)
            for key in _KEYS
            if key in state
        ]
        for mask, moment in self._lifted:
            mask.add_to_pruned(moment, _TINY)
        self._due = _EVERY if self._lifted else 0

    def settle(self) -> None:
        """Zeros again, until the next step."""
        for mask, moment in self._lifted:
            mask.multiply(moment)
        self._lifted, self._due = [], 0

    def remove(self) -> None:
        """Zeros, for good."""
        self.settle()
        for handle in self._handles:
            handle.remove()
