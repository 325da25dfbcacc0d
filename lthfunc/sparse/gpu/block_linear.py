"""Linear layers of blocks: only those that are left are stored and computed, forward and backward.

Operations and gradient are made as in `masked_linear`, for the reasons given there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError, invalid
from lthfunc.sparse.gpu import triton_calls
from lthfunc.sparse.gpu.triton_calls import Precision, check, kernels, rows_of, side, tiles

#: Sides of blocks that there are kernels for.
SIZES = (32, 64, 128)
#: The largest side of a tile of a block.
_MOST = 64


class BlockPattern(NamedTuple):
    """Which blocks of a weight are left, made once for a mask. Lists are int32, on the mask's device.

    row_starts: (rows of blocks + 1,), where each row's blocks begin. rows, columns: (blocks,), where each block lies,
    row after row. column_starts: (columns of blocks + 1,), and which: (blocks,), the blocks' numbers column after
    column. shape: (outputs, inputs). size: the side of a block.
    """

    row_starts: Tensor
    rows: Tensor
    columns: Tensor
    column_starts: Tensor
    which: Tensor
    shape: tuple[int, int]
    size: int


def block_pattern(mask: Tensor, size: int) -> BlockPattern:
    """The pattern of a mask: the blocks in which any weight is left.

    mask: bool (outputs, inputs), of any shape; blocks at its edges may stick out. size: 32, 64 or 128.
    Raises UserError for another size or mask.
    """
    if mask.dtype != torch.bool or mask.ndim != 2:
        raise UserError(f"mask: takes bools (outputs, inputs), not {mask.dtype} of shape {tuple(mask.shape)}")
    if size not in SIZES:
        raise invalid("size", size, f"one of {', '.join(map(str, SIZES))}")
    left = _in_blocks(mask, size).flatten(2).any(2)
    rows, columns = left.nonzero().unbind(1)
    which = torch.argsort(columns, stable=True)
    by_row, by_column = (torch.nn.functional.pad(left.sum(axis).cumsum(0), (1, 0)).int() for axis in (1, 0))
    outputs, inputs = mask.shape
    return BlockPattern(by_row, rows.int(), columns.int(), by_column, which.int(), (outputs, inputs), size)


def pack_blocks(weight: Tensor, pattern: BlockPattern) -> Tensor:
    """The weight's blocks that are left: (blocks, size, size), zero past its edges. Gradients flow through it.

    weight: (outputs, inputs). Raises UserError for a weight of another shape.
    """
    if tuple(weight.shape) != pattern.shape:
        raise UserError(f"weight: takes the shape {pattern.shape}, not {tuple(weight.shape)}")
    return _in_blocks(weight, pattern.size)[pattern.rows.long(), pattern.columns.long()]


def unpack_blocks(values: Tensor, pattern: BlockPattern) -> Tensor:
    """The weight (outputs, inputs) again, zero where no block is left. Gradients flow through it.

    values: (blocks, size, size). Raises UserError for values of another shape.
    """
    size, (outputs, inputs) = pattern.size, pattern.shape
    _check_values(values, pattern)
    high, across = len(pattern.row_starts) - 1, len(pattern.column_starts) - 1
    whole = values.new_zeros(high, across, size, size)
    whole = whole.index_put((pattern.rows.long(), pattern.columns.long()), values)
    return whole.transpose(1, 2).reshape(high * size, across * size)[:outputs, :inputs]


def block_linear(
    x: Tensor, values: Tensor, pattern: BlockPattern, bias: Tensor | None = None, *, precision: Precision = "ieee"
) -> Tensor:
    """``x Wᵀ + bias``, of a weight W of which only blocks are left: the others are neither stored nor computed.

    Blocks are computed whole: a weight that is zero inside one has a gradient nevertheless (`lf.blocks` makes masks
    that leave whole blocks). Sums are in float32, always in one order: the same bits every time.

    x: (n, inputs), or with more dimensions, all of them of examples; float32, float16 or bfloat16.
    values: (blocks, size, size), by `pack_blocks`, of x's type or float32, which is then rounded to x's type as it is
    read. pattern: by `block_pattern`, on x's device. bias: (outputs,) as values, or None. precision: how float32 is
    multiplied, "ieee" or "tf32".

    Returns y as x's type: (n, outputs). Gradients flow to x, values and bias, in their types, also under
    `torch.func.grad` and `torch.compile`; not under `vmap`, and not a second time. Raises UserError for shapes, types,
    devices or a precision that don't go together, and where Triton is not installed.

        pattern = block_pattern(mask, 64)
        y = block_linear(x, pack_blocks(weight, pattern), pattern, bias)
    """
    triton_calls.check_precision(precision)
    outputs, inputs = pattern.shape
    check("x", x, (*x.shape[:-1], inputs), triton_calls.DTYPES, x)
    _check_values(values, pattern)
    check("values", values, tuple(values.shape), tuple(dict.fromkeys((x.dtype, torch.float32))), x)
    check("pattern", pattern.rows, tuple(pattern.rows.shape), (torch.int32,), x)
    if bias is not None:
        check("bias", bias, (outputs,), (values.dtype,), x)
    y: Tensor = _layer(x.reshape(-1, inputs), values, bias, *pattern[:5], outputs, inputs, pattern.size, precision)
    return y.reshape(*x.shape[:-1], outputs)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]  # Dynamo, looking into the Function under `torch.func`, would lose its gradients
def _layer(*arguments: Any) -> Tensor:
    y: Tensor = _BlockLinear.apply(*arguments)
    return y


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(x, values, bias, row_starts, rows, columns, column_starts, which, outputs, inputs, size, precision):  # type: ignore[no-untyped-def]
        return _forward(x, values, bias, row_starts, columns, outputs, size, precision)

    @staticmethod
    def setup_context(ctx, inputs, output):  # type: ignore[no-untyped-def]
        x, values, _, _, rows, columns, column_starts, which, _, ctx.inputs, ctx.size, ctx.precision = inputs
        ctx.save_for_backward(x, values, rows, columns, column_starts, which)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, values, rows, columns, column_starts, which = ctx.saved_tensors
        to_x, to_values, to_bias, *_ = ctx.needs_input_grad
        grad_x = grad_values = grad_bias = None
        if to_x:
            grad_x = _input_gradient(grad, values, column_starts, which, rows, ctx.inputs, ctx.size, ctx.precision)
        if to_values:
            grad_values = _value_gradient(x, grad, values, rows, columns, ctx.size, ctx.precision)
        if to_bias:
            grad_bias = grad.sum(0, dtype=torch.float32).to(values.dtype)
        return grad_x, grad_values, grad_bias, *(None,) * 9


@torch.library.custom_op("lthfunc::block_linear", mutates_args=())
def _forward(
    x: Tensor, values: Tensor, bias: Tensor | None, row_starts: Tensor, columns: Tensor, outputs: int, size: int,
    precision: str,
) -> Tensor:  # fmt: skip
    triton_calls.check_device("block_linear", x)  # here, where tracers don't look
    (x,), examples = rows_of(x[None]), len(x)
    y = x.new_empty(examples, outputs)
    block_examples, block_rows = side(examples), min(size, _MOST)
    depth, rest = triton_calls.compiled_in(x.dtype, precision)
    with triton_calls.on(x.device):
        kernels("blocks").forward[(tiles(examples, block_examples), (len(row_starts) - 1) * (size // block_rows))](
            x, values.contiguous(), row_starts, columns, x if bias is None else bias.contiguous(), y,
            outputs, x.shape[1], examples, x.stride(0),
            biased=bias is not None, size=size, block_examples=block_examples, block_rows=block_rows, depth=depth,
            **rest,
        )  # fmt: skip
    return y


@torch.library.custom_op("lthfunc::block_linear_input_gradient", mutates_args=())
def _input_gradient(
    grad: Tensor, values: Tensor, column_starts: Tensor, which: Tensor, rows: Tensor, inputs: int, size: int,
    precision: str,
) -> Tensor:  # fmt: skip
    (grad,), examples = rows_of(grad[None]), len(grad)
    grad_x = grad.new_empty(examples, inputs)
    block_examples, block_columns = side(examples), min(size, _MOST)
    depth, rest = triton_calls.compiled_in(grad.dtype, precision)
    grid = tiles(examples, block_examples), (len(column_starts) - 1) * (size // block_columns)
    with triton_calls.on(grad.device):
        kernels("blocks").input_gradient[grid](
            grad, values.contiguous(), column_starts, which, rows, grad_x,
            grad.shape[1], inputs, examples, grad.stride(0),
            size=size, block_examples=block_examples, block_columns=block_columns, depth=depth, **rest,
        )  # fmt: skip
    return grad_x


@torch.library.custom_op("lthfunc::block_linear_value_gradient", mutates_args=())
def _value_gradient(
    x: Tensor, grad: Tensor, values: Tensor, rows: Tensor, columns: Tensor, size: int, precision: str
) -> Tensor:
    (x,), (grad,) = rows_of(x[None]), rows_of(grad[None])
    grad_values = torch.empty_like(values, memory_format=torch.contiguous_format)
    block = min(size, _MOST)
    depth, rest = triton_calls.compiled_in(x.dtype, precision)
    if not len(values):  # a launch of nothing is none
        return grad_values
    with triton_calls.on(x.device):
        kernels("blocks").value_gradient[(len(values), size // block, size // block)](
            x, grad, rows, columns, grad_values,
            grad.shape[1], x.shape[1], len(x), x.stride(0), grad.stride(0),
            size=size, block_rows=block, block_columns=block, block_examples=depth, **rest,
        )  # fmt: skip
    return grad_values


@_forward.register_fake
def _(
    x: Tensor, values: Tensor, bias: Tensor | None, row_starts: Tensor, columns: Tensor, outputs: int, size: int,
    precision: str,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape[0], outputs)


@_input_gradient.register_fake
def _(
    grad: Tensor, values: Tensor, column_starts: Tensor, which: Tensor, rows: Tensor, inputs: int, size: int,
    precision: str,
) -> Tensor:  # fmt: skip
    return grad.new_empty(grad.shape[0], inputs)


@_value_gradient.register_fake
def _(x: Tensor, grad: Tensor, values: Tensor, rows: Tensor, columns: Tensor, size: int, precision: str) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _in_blocks(tensor: Tensor, size: int) -> Tensor:
    """(rows of blocks, columns of blocks, size, size), zero past the edges."""
    outputs, inputs = tensor.shape
    whole = torch.nn.functional.pad(tensor, (0, -inputs % size, 0, -outputs % size))
    return whole.reshape(-(-outputs // size), size, -(-inputs // size), size).transpose(1, 2)


def _check_values(values: Tensor, pattern: BlockPattern) -> None:
    wanted = len(pattern.rows), pattern.size, pattern.size
    if tuple(values.shape) != wanted:
        raise UserError(f"values: takes the shape {wanted}, not {tuple(values.shape)}")
