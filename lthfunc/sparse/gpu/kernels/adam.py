"""A weight's gradient, its mask and Adam in one kernel."""

import triton
import triton.language as tl

from lthfunc.sparse.gpu.kernels.common import gradient_tile, mask_tile, number_tile, store_tile


@triton.jit
def masked_adam(
    x, grad, y, bits, weight, mean, variance, rate, corrections, new_weight, new_mean, new_variance,
    outputs, inputs, examples, words, x_network, x_row, grad_network, grad_row, rate_network, corrections_network,
    rest1, beta2, rest2, epsilon, decay, relu: tl.constexpr, decayed: tl.constexpr, block_rows: tl.constexpr,
    block_columns: tl.constexpr, block_examples: tl.constexpr, precision: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """One tile of one network's weight. decayed: "" (no weight decay), "l2" or "decoupled".

    What is written may be what was read: a tile's numbers are read by no other program.
    """
    network = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * block_rows + tl.arange(0, block_rows)
    columns = tl.program_id(0) * block_columns + tl.arange(0, block_columns)
    left = mask_tile(bits + network * outputs * words, rows, columns, outputs, inputs, words)
    # Where nothing is left there is nothing to add up.
    examples = tl.where(tl.max(tl.max(left.to(tl.int32), 1), 0) > 0, examples, 0)
    g, _ = gradient_tile(
        x + network * x_network, grad + network * grad_network, y + network * grad_network, rows, columns, outputs,
        inputs, examples, x_row, grad_row, relu, block_examples, block_rows, block_columns, precision, wide,
    )  # fmt: skip
    start = network * outputs * inputs
    p = number_tile(weight + start, rows, columns, outputs, inputs, inputs)
    m = number_tile(mean + start, rows, columns, outputs, inputs, inputs)
    v = number_tile(variance + start, rows, columns, outputs, inputs, inputs)
    step = tl.load(rate + network * rate_network)
    stride = step * tl.load(corrections + network * corrections_network)
    widen = tl.load(corrections + network * corrections_network + 1)
    if decayed == "l2":
        g = g + p * decay
    m = m + (g - m) * rest1
    v = v * beta2 + g * g * rest2
    if decayed == "decoupled":
        p = p * (1 - step * decay)
    p = p - tl.div_rn(stride * m, tl.sqrt_rn(v) * widen + epsilon)
    store_tile(new_weight + start, tl.where(left, p, 0.0), rows, columns, outputs, inputs, inputs)
    store_tile(new_mean + start, tl.where(left, m, 0.0), rows, columns, outputs, inputs, inputs)
    store_tile(new_variance + start, tl.where(left, v, 0.0), rows, columns, outputs, inputs, inputs)
