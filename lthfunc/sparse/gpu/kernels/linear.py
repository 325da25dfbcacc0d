"""Linear layers under masks, with a bias and a ReLU where there are some, of K networks; and their gradients."""

import triton
import triton.language as tl

from lthfunc.sparse.gpu.kernels.common import gated, gradient_tile, mask_tile, number_tile, plus_product, store_tile


@triton.jit
def forward(
    x, weight, bits, bias, y,
    outputs, inputs, examples, words, x_network, x_row,
    biased: tl.constexpr, relu: tl.constexpr, block_examples: tl.constexpr, block_rows: tl.constexpr,
    block_columns: tl.constexpr, precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """One tile (examples, outputs) of one network's y: x (weight · mask)ᵀ + bias, and ReLU."""
    network = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    n = tl.program_id(0) * block_examples + tl.arange(0, block_examples)
    x += network * x_network
    weight += network * outputs * inputs
    bits += network * outputs * words
    total = tl.zeros((block_examples, block_rows), dtype=tl.float32)
    for start in range(0, inputs, block_columns):
        columns = start + tl.arange(0, block_columns)
        left = mask_tile(bits, rows, columns, outputs, inputs, words)
        w = number_tile(weight, rows, columns, outputs, inputs, inputs)
        w = tl.where(left, w, 0.0).to(x.dtype.element_ty)
        here = number_tile(x, n, columns, examples, inputs, x_row)
        total = plus_product(total, here, tl.trans(w), precision, wide)
    if biased:
        total += tl.load(bias + network * outputs + rows, mask=rows < outputs, other=0.0).to(tl.float32)[None, :]
    if relu:
        total = tl.where(total <= 0, 0.0, total)  # which keeps NaN
    store_tile(y + network * examples * outputs, total, n, rows, examples, outputs, outputs)


@triton.jit
def input_gradient(
    grad, y, weight, bits, grad_x,
    outputs, inputs, examples, words, grad_network, grad_row,
    relu: tl.constexpr, block_examples: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """One tile (examples, inputs) of one network's gradient of x: grad (weight · mask), behind the ReLU."""
    network = tl.program_id(2).to(tl.int64)
    columns = tl.program_id(1) * block_columns + tl.arange(0, block_columns)
    n = tl.program_id(0) * block_examples + tl.arange(0, block_examples)
    grad += network * grad_network
    y += network * grad_network
    weight += network * outputs * inputs
    bits += network * outputs * words
    total = tl.zeros((block_examples, block_columns), dtype=tl.float32)
    for start in range(0, outputs, block_rows):
        rows = start + tl.arange(0, block_rows)
        # Turned over as it is read: Triton 3.6 fails on masked factors that go into a product as they are.
        there = (rows[None, :] < outputs) & (columns[:, None] < inputs)
        word = tl.load(bits + rows[None, :] * words + columns[:, None] // 32, mask=there, other=0)
        w = tl.load(weight + rows.to(tl.int64)[None, :] * inputs + columns[:, None], mask=there, other=0.0)
        w = tl.where(((word >> (columns[:, None] % 32)) & 1) != 0, w, 0.0).to(grad.dtype.element_ty)
        here = number_tile(grad, n, rows, examples, outputs, grad_row)
        if relu:
            here = gated(here, number_tile(y, n, rows, examples, outputs, grad_row))
        total = plus_product(total, here, tl.trans(w), precision, wide)
    store_tile(grad_x + network * examples * inputs, total, n, columns, examples, inputs, inputs)


@triton.jit
def weight_gradient(
    x, grad, y, bits, grad_weight, grad_bias,
    outputs, inputs, examples, words, x_network, x_row, grad_network, grad_row,
    biased: tl.constexpr, relu: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    block_examples: tl.constexpr, precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """One tile (outputs, inputs) of one network's gradient of the weight, masked; and the bias's beside the first."""
    network = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    left = mask_tile(bits + network * outputs * words, rows, columns, outputs, inputs, words)
    total, sums = gradient_tile(
        x + network * x_network, grad + network * grad_network, y + network * grad_network, rows, columns, outputs,
        inputs, examples, x_row, grad_row, relu, block_examples, block_rows, block_columns, precision, wide,
    )  # fmt: skip
    total = tl.where(left, total, 0.0)
    store_tile(grad_weight + network * outputs * inputs, total, rows, columns, outputs, inputs, inputs)
    if biased and tl.program_id(0) == 0:
        where = grad_bias + network * outputs + rows
        tl.store(where, sums.to(grad_bias.dtype.element_ty), mask=rows < outputs)
