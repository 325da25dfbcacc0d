"""Linear layers under masks, of many networks at once, with bias and ReLU; and their gradients.

The kernels are PyTorch operations of their own (`torch.library.custom_op`), so that `make_fx`, `torch.compile` and fake
tensors see shapes and nothing else; they are opaque, since what Inductor could fuse with a kernel is in it already. The
gradient is a `torch.autograd.Function` around them, since `torch.func` takes no other kind; Dynamo leaves it as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.sparse.gpu import triton_calls
from lthfunc.sparse.gpu.bits import words
from lthfunc.sparse.gpu.triton_calls import Precision, check, kernels, rows_of, side, tiles


def masked_linear(
    x: Tensor,
    weight: Tensor,
    bits: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    precision: Precision = "ieee",
) -> Tensor:
    """``x (weight · mask)ᵀ + bias`` of K networks in one launch, behind a ReLU where asked for.

    The mask is read as bits, and applied where the weight is read: whatever stands at pruned places counts as zero, and
    the weight's gradient is exactly zero there. Sums are in float32, always in one order: the same bits every time.

    x: (K, n, inputs), float32, float16 or bfloat16; networks may share it (`expand`), and n is any number of examples.
    weight: (K, outputs, inputs), of x's type or float32, which is then rounded to x's type as it is read.
    bits: int32 (K, outputs, words), by `pack_bits`. bias: (K, outputs) as weight, or None. precision: how float32 is
    multiplied, "ieee" or "tf32".
    Without K, all tensors have a dimension less; x may also have more, all of them of examples.

    Returns y as x's type: (K, n, outputs). Gradients flow to x, weight and bias, in their types, also under
    `torch.func.grad` and `torch.compile`; not under `vmap`, whose place K takes, and not a second time. Where y is NaN
    the ReLU lets NaN and gradients through, as PyTorch's. Raises UserError for shapes, types, devices or a precision
    that don't go together, and where Triton is not installed.

        hidden = masked_linear(x.expand(K, *x.shape), weights, pack_bits(masks), biases, relu=True)
    """
    triton_calls.check_precision(precision)
    if weight.ndim not in (2, 3):
        raise UserError(f"weight: takes (outputs, inputs) or (K, outputs, inputs), not {tuple(weight.shape)}")
    lead, (outputs, inputs) = tuple(weight.shape[:-2]), weight.shape[-2:]
    batch = tuple(x.shape[len(lead) : -1])
    check("x", x, (*lead, *batch, inputs), triton_calls.DTYPES, x)
    check("weight", weight, (*lead, outputs, inputs), tuple(dict.fromkeys((x.dtype, torch.float32))), x)
    check("bits", bits, (*lead, outputs, words(inputs)), (torch.int32,), x)
    if bias is not None:
        check("bias", bias, (*lead, outputs), (weight.dtype,), x)
    networks = lead[0] if lead else 1
    y: Tensor = _layer(
        x.reshape(networks, -1, inputs), weight.reshape(networks, outputs, inputs),
        bits.reshape(networks, outputs, words(inputs)), None if bias is None else bias.reshape(networks, outputs),
        relu, precision,
    )  # fmt: skip
    return y.reshape(*lead, *batch, outputs)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # Dynamo, looking into the Function under `torch.func`, would lose its gradients
def _layer(*arguments: Any) -> Tensor:
    y: Tensor = _MaskedLinear.apply(*arguments)
    return y


class _MaskedLinear(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bits, bias, relu, precision):  # type: ignore[no-untyped-def]
        return _forward(x, weight, bits, bias, relu, precision)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, weight, bits, bias, ctx.relu, ctx.precision = inputs
        ctx.save_for_backward(x, weight, bits, output if ctx.relu else None)
        ctx.biased = bias is not None

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight, bits, y = ctx.saved_tensors
        to_x, to_weight, _, to_bias, _, _ = ctx.needs_input_grad
        grad_x = _input_gradient(grad, y, weight, bits, ctx.precision) if to_x else None
        grad_weight = grad_bias = None
        if to_weight or to_bias:
            grad_weight, grad_bias = _weight_gradient(x, grad, y, weight, bits, ctx.biased, ctx.precision)
        return grad_x, grad_weight, None, grad_bias if ctx.biased else None, None, None


@torch.library.custom_op("lthfunc::masked_linear", mutates_args=())
def _forward(x: Tensor, weight: Tensor, bits: Tensor, bias: Tensor | None, relu: bool, precision: str) -> Tensor:
    triton_calls.check_device("masked_linear", x)  # here, where tracers don't look
    networks, outputs, inputs = weight.shape
    x, examples = rows_of(x), x.shape[1]
    y = x.new_empty(networks, examples, outputs)
    block_examples, block_rows = side(examples), side(outputs)
    depth, rest = triton_calls.compiled_in(x.dtype, precision)
    with triton_calls.on(x.device):
        kernels("linear").forward[(tiles(examples, block_examples), tiles(outputs, block_rows), networks)](
            x, weight.contiguous(), bits.contiguous(), x if bias is None else bias.contiguous(), y,
            outputs, inputs, examples, words(inputs), x.stride(0), x.stride(1),
            biased=bias is not None, relu=relu, block_examples=block_examples, block_rows=block_rows,
            block_columns=depth, **rest,
        )  # fmt: skip
    return y


@torch.library.custom_op("lthfunc::masked_linear_input_gradient", mutates_args=())
def _input_gradient(grad: Tensor, y: Tensor | None, weight: Tensor, bits: Tensor, precision: str) -> Tensor:
    networks, outputs, inputs = weight.shape
    grad, y = _alike(grad, y)
    examples = grad.shape[1]
    grad_x = grad.new_empty(networks, examples, inputs)
    block_examples, block_columns = side(examples), side(inputs)
    depth, rest = triton_calls.compiled_in(grad.dtype, precision)
    with triton_calls.on(grad.device):
        kernels("linear").input_gradient[(tiles(examples, block_examples), tiles(inputs, block_columns), networks)](
            grad, grad if y is None else y, weight.contiguous(), bits.contiguous(), grad_x,
            outputs, inputs, examples, words(inputs), grad.stride(0), grad.stride(1),
            relu=y is not None, block_examples=block_examples, block_rows=depth, block_columns=block_columns,
            **rest,
        )  # fmt: skip
    return grad_x


@torch.library.custom_op("lthfunc::masked_linear_weight_gradient", mutates_args=())
def _weight_gradient(
    x: Tensor, grad: Tensor, y: Tensor | None, weight: Tensor, bits: Tensor, biased: bool, precision: str
) -> tuple[Tensor, Tensor]:
    networks, outputs, inputs = weight.shape
    x, (grad, y) = rows_of(x), _alike(grad, y)
    examples = x.shape[1]
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
    grad_bias = weight.new_empty(networks, outputs if biased else 0)
    block_rows, block_columns = side(outputs), side(inputs)
    depth, rest = triton_calls.compiled_in(x.dtype, precision)
    with triton_calls.on(x.device):
        kernels("linear").weight_gradient[(tiles(inputs, block_columns), tiles(outputs, block_rows), networks)](
            x, grad, grad if y is None else y, bits.contiguous(), grad_weight, grad_bias,
            outputs, inputs, examples, words(inputs), x.stride(0), x.stride(1), grad.stride(0), grad.stride(1),
            biased=biased, relu=y is not None, block_rows=block_rows, block_columns=block_columns,
            block_examples=depth, **rest,
        )  # fmt: skip
    return grad_weight, grad_bias


@_forward.register_fake
def _(x: Tensor, weight: Tensor, bits: Tensor, bias: Tensor | None, relu: bool, precision: str) -> Tensor:
    return x.new_empty(*x.shape[:2], weight.shape[1])


@_input_gradient.register_fake
def _(grad: Tensor, y: Tensor | None, weight: Tensor, bits: Tensor, precision: str) -> Tensor:
    return grad.new_empty(*grad.shape[:2], weight.shape[2])


@_weight_gradient.register_fake
def _(
    x: Tensor, grad: Tensor, y: Tensor | None, weight: Tensor, bits: Tensor, biased: bool, precision: str
) -> tuple[Tensor, Tensor]:
    networks, outputs, _ = weight.shape
    like = torch.empty_like(weight, memory_format=torch.contiguous_format)
    return like, weight.new_empty(networks, outputs if biased else 0)


def _alike(grad: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The two, with rows at the same steps."""
    grad = rows_of(grad)
    if y is None or y.stride() == grad.stride():
        return grad, y
    return grad.contiguous(), y.contiguous()
