"""Precisions of a network's matrix products. Params and optimisers stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from lthfunc.errors import invalid

#: fp32: exact float32. tf32: products round their factors to 10 bits (NVIDIA, from Ampere on). bf16: autocast.
Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "bf16")
_AMPERE = (8, 0)


def check_precision(precision: str, device: torch.device | str) -> None:
    """Raise UserError where the device cannot compute in this precision."""
    kind = torch.device(device).type
    able = ["fp32", "bf16"]  # a CPU without bfloat16 instructions emulates them: right, but slow
    if kind == "cuda":
        able = list(PRECISIONS) if torch.cuda.get_device_capability(device) >= _AMPERE else ["fp32"]
    if precision not in able:
        raise invalid("precision", precision, f"one of {', '.join(able)} on {device}")


def autocast_for(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Autocast for bf16, nothing otherwise; inside the pure step, so that it is traced with it."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Compute matrix products and convolutions on a GPU in tf32 or in full float32 in the block.

    A setting of the process, since torch has no other; it applies both where a program is traced and where it runs.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
