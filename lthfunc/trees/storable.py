"""What safetensors files can hold: plain tensors. Anything else is refused before training begins."""

from __future__ import annotations

import torch
from torch import nn

from lthfunc.errors import UserError

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)
_TYPES = frozenset((
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
))  # fmt: skip


def check_storable(module: nn.Module) -> None:
    """Raise UserError, with its name, for a parameter or buffer that no file can hold."""
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        reason = _why_not(leaf)
        if reason is not None:
            raise UserError(
                f"{type(module).__name__}: {name} is {reason}, which a ticket's file cannot hold (expected a dense "
                "tensor of floats, integers or booleans)"
            )


def _why_not(leaf: torch.Tensor) -> str | None:
    if leaf.is_quantized:
        return "quantised"
    if leaf.layout is not torch.strided:
        return f"of a sparse layout ({str(leaf.layout).removeprefix('torch.')})"
    if leaf.device.type == "meta":
        return "on the meta device and has no values"
    if type(leaf) not in _PLAIN and not nn.parameter.is_lazy(leaf):
        return f"a {type(leaf).__name__}, a kind of tensor of its own"
    if leaf.dtype not in _TYPES:
        return f"of the type {str(leaf.dtype).removeprefix('torch.')}"
    return None
