"""What calls of kernels share: Triton where it is needed, what they can take, and sides of tiles."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, Literal

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.printable import dtype_name

#: How a kernel multiplies float32: exactly, or by tensor cores with 10 bits of each factor.
Precision = Literal["ieee", "tf32"]
PRECISIONS = ("ieee", "tf32")
#: What kernels compute in; they add up in float32.
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: The least side of a tile that a product takes, and the largest that is chosen.
_LEAST, _MOST = 16, 64


def kernels(name: str) -> Any:
    """The kernels of a file in `kernels/`. Raises UserError where Triton is not installed."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise UserError(
            "lthfunc.sparse.gpu: needs Triton, which is not installed (pip install triton; it is made for Linux)"
        ) from error
    return importlib.import_module(f"lthfunc.sparse.gpu.kernels.{name}")


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on a CPU: where TRITON_INTERPRET=1 was set before its import."""
    from triton.runtime.jit import JITFunction

    return not isinstance(kernels("common").mask_tile, JITFunction)


def check_device(name: str, tensor: Tensor) -> None:
    """Raise UserError where kernels don't run on a tensor's device."""
    if tensor.device.type != "cuda" and not interpreted():
        raise UserError(
            f"{name}: takes tensors on a CUDA device, not on {tensor.device} (TRITON_INTERPRET=1 runs kernels there)"
        )


def on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Launches go to this device, whichever is current."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def check(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], like: Tensor) -> None:
    """Raise UserError where a tensor has another shape, type or device than a kernel takes."""
    if tuple(tensor.shape) != shape:
        raise UserError(f"{name}: takes the shape {shape}, not {tuple(tensor.shape)}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(dtype_name(each) for each in dtypes)
        raise UserError(f"{name}: takes {wanted}, not {dtype_name(tensor.dtype)}")
    if tensor.device != like.device:
        raise UserError(f"{name}: lies on {tensor.device}, and the rest on {like.device}")


def check_precision(precision: str) -> None:
    """Raise UserError for another way of multiplying."""
    if precision not in PRECISIONS:
        raise invalid("precision", precision, " or ".join(PRECISIONS))


def side(length: int, most: int = _MOST) -> int:
    """A tile's side along a length: a power of two that covers it, within what products take."""
    return max(_LEAST, min(most, 1 << max(0, length - 1).bit_length()))


def tiles(length: int, block: int) -> int:
    """How many tiles cover a length; one at the least, so that no launch is empty."""
    return max(1, -(-length // block))


def compiled_in(dtype: torch.dtype, precision: str, warps: int = 4) -> tuple[int, dict[str, Any]]:
    """(how deep a product is taken at a time, what else a kernel with products is compiled with).

    Exact products of float32 are no tensor core's: each thread holds its factors, which fewer at a time and more
    threads keep within its registers. (The tests assemble kernels, and see that none spills.)
    """
    exact = dtype == torch.float32 and precision == "ieee"
    depth, warps = (16, 8) if exact else (32, warps)
    return depth, {"precision": precision, "wide": interpreted(), "num_warps": warps}


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor itself where each row's numbers lie side by side and rows at equal steps, else a copy that is so.

    tensor: (networks, rows, columns). Networks may share their memory (a step of 0, by `expand`).
    """
    _, rows, columns = tensor.shape
    if (tensor.stride(2) == 1 or columns <= 1) and (tensor.stride(1) >= columns or rows <= 1):
        return tensor
    return tensor.contiguous()
