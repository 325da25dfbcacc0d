"""Several inputs in one tensor: each example's inputs lie side by side in a row, and the module gets them apart again.

So data sets, batches and engines handle one tensor of inputs, whatever a network takes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.errors import UserError

#: float32 represents every whole number up to this one.
_EXACT = 1 << 24


class InputSpec(NamedTuple):
    """One of several inputs. name: of the argument, or "" for the next positional one; shape: without the batch."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def pack_inputs(named: Mapping[str | int, Tensor]) -> tuple[Tensor, tuple[InputSpec, ...]]:
    """(float32 (n, numbers), the specs of the inputs in it). Whole numbers of up to 2^24 stay exact.

    named: the inputs by the names of the module's arguments, or by their numbers. Raises UserError where the inputs
    differ in length, or a whole number is larger.
    """
    if len({len(each) for each in named.values()}) != 1:
        raise UserError(f"inputs: lengths differ: {', '.join(str(len(each)) for each in named.values())}")
    for each in named.values():
        whole = not each.is_floating_point() and each.dtype != torch.bool
        if whole and each.numel() and int(each.abs().max()) > _EXACT:
            raise UserError(f"inputs: {int(each.abs().max())} is a whole number beyond 2^24, which float32 cannot hold")
    parts = tuple(
        InputSpec(name if isinstance(name, str) else "", tuple(each.shape[1:]), each.dtype)
        for name, each in named.items()
    )
    return torch.cat([each.flatten(1).float() if each.ndim > 1 else each[:, None].float()
                      for each in named.values()], dim=1), parts  # fmt: skip


class UnpackInputs(NamedTuple):
    """A forward pre-hook (with keywords) that splits the row into the module's inputs."""

    parts: tuple[InputSpec, ...]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        (x,) = args
        pieces = torch.split(x, [math.prod(part.shape) for part in self.parts], dim=1)
        apart = [
            (part.name, piece.reshape(-1, *part.shape).to(part.dtype if not part.dtype.is_floating_point else x.dtype))
            for part, piece in zip(self.parts, pieces, strict=True)
        ]
        return tuple(each for name, each in apart if not name), {name: each for name, each in apart if name}


def taking_apart(module: nn.Module, parts: Sequence[InputSpec]) -> nn.Module:
    """A copy of a module that is called with several inputs in one tensor, as the module itself may be already."""
    own = copy.deepcopy(module)
    if parts and not any(isinstance(hook, UnpackInputs) for hook in own._forward_pre_hooks.values()):
        own.register_forward_pre_hook(UnpackInputs(tuple(parts)), with_kwargs=True)  # type: ignore[arg-type]
    return own
