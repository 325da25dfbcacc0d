"""What kernels share: a tile of a mask, a product of two tiles, and a tile of a weight's gradient.

Arguments of all kernels: pointers first; then sizes; then strides, named of what (`x_network`: from one network's x to
the next, `x_row`: from one row to the next; a row's numbers lie side by side); then numbers; then what is compiled in:
block_*: sides of tiles, powers of two; precision: how float32 is multiplied ("ieee" or "tf32"); wide: whether operands
are made float32 before a product, which Triton's interpreter needs for bfloat16, and which changes no result.
"""

import triton
import triton.language as tl


@triton.jit
def mask_tile(bits, rows, columns, row_count, column_count, words):
    """Whether weights are left: bool (rows, columns). bits: (row_count, words) of one network."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    word = tl.load(bits + rows[:, None] * words + columns[None, :] // 32, mask=inside, other=0)
    return ((word >> (columns[None, :] % 32)) & 1) != 0


@triton.jit
def number_tile(numbers, rows, columns, row_count, column_count, row_stride):
    """Numbers (rows, columns) of a matrix; zero outside of it."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    return tl.load(numbers + rows.to(tl.int64)[:, None] * row_stride + columns[None, :], mask=inside, other=0.0)


@triton.jit
def store_tile(numbers, value, rows, columns, row_count, column_count, row_stride):
    """Write numbers (rows, columns) of a matrix, as its own type; nothing outside of it."""
    inside = (rows[:, None] < row_count) & (columns[None, :] < column_count)
    where = numbers + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
    tl.store(where, value.to(numbers.dtype.element_ty), mask=inside)


@triton.jit
def plus_product(total, a, b, precision: tl.constexpr, wide: tl.constexpr):
    """total + a b, summed in float32."""
    if wide:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=precision)


@triton.jit
def gated(grad, y):
    """A gradient behind a ReLU whose output was y: as PyTorch, NaN lets it through."""
    return tl.where(y.to(tl.float32) <= 0, 0.0, grad.to(tl.float32)).to(grad.dtype)


@triton.jit
def gradient_tile(
    x, grad, y, rows, columns, outputs, inputs, examples, x_row, grad_row, relu: tl.constexpr,
    block_examples: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr, precision: tl.constexpr,
    wide: tl.constexpr,
):  # fmt: skip
    """(a tile (rows, columns) of gradᵀ x over all examples, grad's sums (rows,)), float32.

    x: (examples, inputs). grad: (examples, outputs), behind a ReLU with output y (the same strides) where relu.
    """
    total = tl.zeros((block_rows, block_columns), dtype=tl.float32)
    sums = tl.zeros((block_rows,), dtype=tl.float32)
    for start in range(0, examples, block_examples):
        n = start + tl.arange(0, block_examples)
        here = number_tile(grad, n, rows, examples, outputs, grad_row)
        if relu:
            here = gated(here, number_tile(y, n, rows, examples, outputs, grad_row))
        read = number_tile(x, n, columns, examples, inputs, x_row)
        total = plus_product(total, tl.trans(here), read, precision, wide)
        sums += tl.sum(here.to(tl.float32), 0)
    return total, sums
