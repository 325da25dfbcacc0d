"""What safetensors files can hold: plain tensors. Anything else is refused before training begins."""

from __future__ import annotations

import functools

import safetensors
import safetensors.torch
import torch
from torch import nn

from lthfunc.errors import UserError
from lthfunc.printable import dtype_name

_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


def check_storable(module: nn.Module) -> None:
    """Raise UserError, with its name, for a parameter or buffer that no file can hold."""
    for name, leaf in (*module.named_parameters(), *module.named_buffers()):
        reason = why_not_storable(leaf)
        if reason is not None:
            raise UserError(
                f"{type(module).__name__}: {name} is {reason}, which a ticket's file cannot hold (expected a dense "
                "tensor of floats, integers or booleans)"
            )


def why_not_storable(leaf: torch.Tensor) -> str | None:
    """Why no file can hold a tensor, as the end of a sentence; None where one can."""
    if leaf.is_quantized:
        return "quantised"
    if leaf.layout is not torch.strided:
        return f"of a sparse layout ({dtype_name(leaf.layout)})"
    if leaf.device.type == "meta":
        return "on the meta device and has no values"
    if type(leaf) not in _PLAIN and not nn.parameter.is_lazy(leaf):
        return f"a {type(leaf).__name__}, a kind of tensor of its own"
    return None if _has_code(leaf.dtype) else f"of the type {dtype_name(leaf.dtype)}"


@functools.cache
def _has_code(dtype: torch.dtype) -> bool:
    try:
        safetensors.torch.save({"x": torch.empty(0, dtype=dtype)})
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError):
        return False
    return True
