"""A weight's gradient, its mask and Adam in one kernel: no gradient of a weight ever stands in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.sparse.gpu import triton_calls
from lthfunc.sparse.gpu.bits import words
from lthfunc.sparse.gpu.triton_calls import Precision, check, kernels, rows_of, side, tiles
from lthfunc.training.optimizers import AdamNumbers

#: A program's warps: three tiles beside the sum are many registers.
_WARPS = 8


def masked_adam(
    x: Tensor,
    grad: Tensor,
    bits: Tensor,
    weight: Tensor,
    mean: Tensor,
    variance: Tensor,
    rate: Tensor,
    corrections: Tensor,
    numbers: AdamNumbers,
    *,
    gate: Tensor | None = None,
    precision: Precision = "ieee",
    out: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Adam's step of a linear layer's weight, from the layer's input and the gradient of its output.

    Does what `lf.adam(...)` or `lf.adamw(...)` do with the masked gradient ``gradᵀ x``, formula for formula. Pruned
    weights and their moments come out as exact zeros, whatever went in.

    x: (K, n, inputs), of K networks side by side; float32, float16 or bfloat16. Networks may share it (`expand`).
    grad: (K, n, outputs), of the mean loss by the layer's output, as x's type. Any number n of examples.
    bits: int32 (K, outputs, words), by `pack_bits`. weight, mean, variance: float32 (K, outputs, inputs).
    rate: float32 () or (K,), this step's learning rate. corrections: float32 (2,) or (K, 2), `AdamState.corrections`.
    Both are read on the device, so that a captured graph may be replayed with others.
    numbers: `optimizer.numbers`: betas, eps, weight decay, and whether that is decoupled.
    gate: (K, n, outputs) as x, the layer's output behind a ReLU; grad is then that output's gradient, and passes where
    gate > 0 alone. precision: how float32 is multiplied, "ieee" or "tf32".
    out: where the new weight, mean and variance are written; they may be weight, mean and variance themselves. Without
    it no argument changes.
    Without K, all tensors have a dimension less; x and grad may also have more, all of them of examples.

    Returns the new (weight, mean, variance). Raises UserError for shapes, types, devices or a precision that don't go
    together, and where Triton is not installed. Nothing flows back through it.

        weight, mean, variance = masked_adam(
            x, grad, pack_bits(mask), weight, opt.mean[name], opt.variance[name], rate, opt.corrections, adam.numbers)
    """
    kernel = kernels("adam").masked_adam
    triton_calls.check_device("masked_adam", x)
    triton_calls.check_precision(precision)
    if weight.ndim not in (2, 3):
        raise UserError(f"weight: takes (outputs, inputs) or (K, outputs, inputs), not {tuple(weight.shape)}")
    alone = weight.ndim == 2
    networks, (outputs, inputs) = 1 if alone else len(weight), weight.shape[-2:]
    lead = () if alone else (networks,)
    batch = tuple(x.shape[len(lead) : -1])
    check("x", x, (*lead, *batch, inputs), triton_calls.DTYPES, x)
    check("grad", grad, (*lead, *batch, outputs), (x.dtype,), x)
    check("bits", bits, (*lead, outputs, words(inputs)), (torch.int32,), x)
    moments = {"weight": weight, "mean": mean, "variance": variance}
    for name, tensor in moments.items():
        check(name, tensor, (*lead, outputs, inputs), (torch.float32,), x)
    shape = () if rate.ndim == 0 else (networks,)
    check("rate", rate, shape, (torch.float32,), x)
    check("corrections", corrections, (2,) if corrections.ndim == 1 else (networks, 2), (torch.float32,), x)
    if gate is not None:
        check("gate", gate, (*lead, *batch, outputs), (x.dtype,), x)
    for name, tensor in zip(moments, out or (), strict=bool(out)):
        check(f"out ({name})", tensor, (*lead, outputs, inputs), (torch.float32,), x)
        if not tensor.is_contiguous():
            raise UserError(f"out ({name}): takes contiguous memory")

    found = out or tuple(torch.empty_like(weight, memory_format=torch.contiguous_format) for _ in range(3))
    x, grad = (rows_of(each.reshape(networks, -1, each.shape[-1])) for each in (x, grad))
    y = grad
    if gate is not None:
        y = gate.reshape(networks, -1, outputs)
        if y.stride() != grad.stride():
            y, grad = y.contiguous(), grad.contiguous()
    examples = x.shape[1]
    block_rows, block_columns = side(outputs), side(inputs)
    depth, rest = triton_calls.compiled_in(x.dtype, precision, _WARPS)
    decayed = "" if not numbers.weight_decay else "decoupled" if numbers.decoupled else "l2"
    beta1, beta2 = numbers.betas
    with triton_calls.on(x.device):
        kernel[(tiles(inputs, block_columns), tiles(outputs, block_rows), networks)](
            x, grad, y, bits.contiguous(), weight.contiguous(), mean.contiguous(), variance.contiguous(),
            rate, corrections.contiguous(), *found, outputs, inputs, examples, words(inputs),
            x.stride(0), x.stride(1), grad.stride(0), grad.stride(1), rate.stride(0) if rate.ndim else 0,
            2 if corrections.ndim == 2 else 0,
            1 - beta1, beta2, 1 - beta2, numbers.eps, float(numbers.weight_decay), relu=gate is not None,
            decayed=decayed, block_rows=block_rows, block_columns=block_columns, block_examples=depth,
            **rest,
        )  # fmt: skip
    weight, mean, variance = found
    return weight, mean, variance
