"""Matrix products by the library that is faster on this processor.

PyTorch's float32 products are MKL's, which uses AVX-512 on Intel's processors alone. AMD's of family 26 (Zen 5) and
later compute twice as much with it, and oneDNN, which PyTorch brings for convolutions, does so.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from lthfunc.hardware import has_wide_amd_cores

#: Multiply-adds from which it pays: a call of oneDNN takes 10 µs, of MKL 1 µs.
_LEAST = 1_000_000

# An operation of our own, since Inductor refuses oneDNN's with weights that change. Not by `custom_op`, which would
# add 6 µs to a call instead of 2.
_LIBRARY = torch.library.Library("lthfunc", "FRAGMENT")
_LIBRARY.define("gemm(Tensor a, Tensor b, Tensor? bias) -> Tensor", tags=(torch.Tag.flexible_layout,))
_SCALARS: list[float] = []


def has_one_dnn() -> bool:
    """Whether this PyTorch was built with oneDNN."""
    return bool(torch.backends.mkldnn.is_available())


def onednn_gemm(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    """a (m, k) @ b (k, n) + bias (n), float32 on a CPU, by oneDNN."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise.default(a, b.t(), bias, "none", _SCALARS, "")
    return result


_LIBRARY.impl("gemm", onednn_gemm, "CPU")


@torch.library.register_fake("lthfunc::gemm", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _gemm_shape(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    return a.new_empty(a.shape[0], b.shape[1])


@cache
def lower_gemms() -> None:
    """Have Inductor write a call of oneDNN itself where it meets a product: by way of Python it takes 3 µs more."""
    if not has_one_dnn():
        return
    from torch._inductor.lowering import fallback_handler, permute, register_lowering

    call = fallback_handler(torch.ops.mkldnn._linear_pointwise.default, add_to_fallback_set=False)

    @register_lowering(torch.ops.lthfunc.gemm.default, type_promotion_kind=None)
    def lowered(a: Any, b: Any, bias: Any) -> Any:
        return call(a, permute(b, [1, 0]), bias, "none", _SCALARS, "")


def mm(a: Tensor, b: Tensor) -> Any:
    """a @ b; NotImplemented where PyTorch's own is as fast."""
    return torch.ops.lthfunc.gemm(a, b, None) if _pays(a, b) else NotImplemented


def addmm(bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """bias + a @ b for a bias of one row; NotImplemented for others, and where PyTorch's own is as fast."""
    if bias.ndim != 1 or beta != 1 or alpha != 1 or not _pays(a, b):
        return NotImplemented
    return torch.ops.lthfunc.gemm(a, b, bias)


def _pays(a: Tensor, b: Tensor) -> bool:
    plain = a.device.type == "cpu" and a.dtype == torch.float32
    return plain and a.shape[0] * b.numel() >= _LEAST and has_one_dnn() and has_wide_amd_cores()
