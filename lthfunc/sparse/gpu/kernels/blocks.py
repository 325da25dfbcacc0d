"""A linear layer of square blocks of weights that are left, and its gradients.

values: (blocks, size, size), row after row of blocks. A block that lies over the weight's edge is whole in memory; what
is past the edge is multiplied by nothing and never written out.
"""

import triton
import triton.language as tl

from lthfunc.sparse.gpu.kernels.common import gradient_tile, number_tile, plus_product, store_tile


@triton.jit
def block_tile(values, block, rows, columns, size: tl.constexpr):
    """Numbers (rows, columns) of a block."""
    return tl.load(values + block.to(tl.int64) * size * size + rows[:, None] * size + columns[None, :])


@triton.jit
def forward(
    x, values, starts, columns, bias, y,
    outputs, inputs, examples, x_row,
    biased: tl.constexpr, size: tl.constexpr, block_examples: tl.constexpr, block_rows: tl.constexpr,
    depth: tl.constexpr, precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """A tile (examples, rows) of y, by the blocks of its row of blocks. starts: where each row's blocks begin."""
    n = tl.program_id(0) * block_examples + tl.arange(0, block_examples)
    row = tl.program_id(1) // (size // block_rows)
    inside = tl.program_id(1) % (size // block_rows) * block_rows + tl.arange(0, block_rows)
    total = tl.zeros((block_examples, block_rows), dtype=tl.float32)
    parts: tl.constexpr = size // depth
    for place in range(tl.load(starts + row) * parts, tl.load(starts + row + 1) * parts):
        block = place // parts
        across = place % parts * depth + tl.arange(0, depth)
        w = block_tile(values, block, inside, across, size).to(x.dtype.element_ty)
        read = number_tile(x, n, tl.load(columns + block) * size + across, examples, inputs, x_row)
        total = plus_product(total, read, tl.trans(w), precision, wide)
    rows = row * size + inside
    if biased:
        total += tl.load(bias + rows, mask=rows < outputs, other=0.0).to(tl.float32)[None, :]
    store_tile(y, total, n, rows, examples, outputs, outputs)


@triton.jit
def input_gradient(
    grad, values, starts, which, rows, grad_x,
    outputs, inputs, examples, grad_row,
    size: tl.constexpr, block_examples: tl.constexpr, block_columns: tl.constexpr, depth: tl.constexpr,
    precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """A tile (examples, columns) of x's gradient. starts: where each column begins in `which`, its blocks' numbers."""
    n = tl.program_id(0) * block_examples + tl.arange(0, block_examples)
    column = tl.program_id(1) // (size // block_columns)
    inside = tl.program_id(1) % (size // block_columns) * block_columns + tl.arange(0, block_columns)
    total = tl.zeros((block_examples, block_columns), dtype=tl.float32)
    parts: tl.constexpr = size // depth
    for place in range(tl.load(starts + column) * parts, tl.load(starts + column + 1) * parts):
        block = tl.load(which + place // parts)
        down = place % parts * depth + tl.arange(0, depth)
        w = block_tile(values, block, down, inside, size).to(grad.dtype.element_ty)
        read = number_tile(grad, n, tl.load(rows + block) * size + down, examples, outputs, grad_row)
        total = plus_product(total, read, w, precision, wide)
    store_tile(grad_x, total, n, column * size + inside, examples, inputs, inputs)


@triton.jit
def value_gradient(
    x, grad, rows, columns, grad_values,
    outputs, inputs, examples, x_row, grad_row,
    size: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr, block_examples: tl.constexpr,
    precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """A tile (rows, columns) of one block's gradient."""
    block = tl.program_id(0)
    down = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    across = tl.program_id(2) * block_columns + tl.arange(0, block_columns)
    total, _ = gradient_tile(
        x, grad, grad, tl.load(rows + block) * size + down, tl.load(columns + block) * size + across, outputs, inputs,
        examples, x_row, grad_row, False, block_examples, block_rows, block_columns, precision, wide,
    )  # fmt: skip
    store_tile(grad_values + block.to(tl.int64) * size * size, total, down, across, size, size, size)
