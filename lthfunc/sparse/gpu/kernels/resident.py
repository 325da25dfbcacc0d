"""Many steps of one network on its survivors by one program: forward, loss, backward and update, step after step.

Activations lie as (features, lanes): an example is a lane, so that whatever survivors of different rows read, a row of
lanes is read side by side. A layer's survivors are listed by output (starts, columns) and by input (starts_back, which:
their numbers among the layer's values, rows). Between a write and reads of it by other threads stands a barrier.

values: (size,), all layers' biases, then all layers' survivors. table: int32 (layers, 6), the same for all networks:
inputs, outputs, and where a layer's bias begins (its outputs too, in their memory), its starts, its starts back, and
its survivors (among all of them, and in columns, which and rows).
"""

import triton
import triton.language as tl


@triton.jit
def survivors(
    total, source, first, stop, number, values, read, lanes, numbered: tl.constexpr, block_lanes: tl.constexpr
):  # fmt: skip
    """total (rows, lanes) plus values times what they read: those from `first` (rows,) up to `stop`.

    numbered: whether a survivor's value is found by its number among the values, not by its place in the list.
    """
    for place in range(tl.max(stop - first, 0)):
        here = first + place < stop
        at = tl.load(read + first + place, mask=here, other=0)
        which = first + place
        if numbered:
            which = tl.load(number + first + place, mask=here, other=0)
        value = tl.load(values + which, mask=here, other=0.0)
        total += value[:, None] * tl.load(
            source + at[:, None] * block_lanes + lanes[None, :], mask=here[:, None], other=0.0
        )
    return total


@triton.jit
def steps(
    x, y, values, mean, variance, gradients, outputs_of, grads_of, losses, rates,
    table, starts, columns, starts_back, which, rows_of,
    layers, size, count, examples, classes, x_network, x_step, y_network, starts_size, starts_back_size, entries,
    features, first_beta_rest, second_beta, second_beta_rest, epsilon, momentum, decay,
    kind: tl.constexpr, decayed: tl.constexpr, block_lanes: tl.constexpr, block_rows: tl.constexpr,
    block_classes: tl.constexpr, block_update: tl.constexpr,
):  # fmt: skip
    """`count` steps of one network. kind: "adam", "sgd", "momentum" or "nesterov"; decayed: "", "l2" or "decoupled".

    x: (…, count, inputs, lanes), y: (…, count, lanes). values, mean, variance: (size,) of each network, written.
    gradients: (size,), outputs_of and grads_of: (features, lanes), to work in. losses: (count,). rates: (count, 3) of
    each network: the learning rate, that times Adam's first correction, and the second.
    """
    network = tl.program_id(0).to(tl.int64)
    values += network * size
    mean += network * size
    variance += network * size
    gradients += network * size
    outputs_of += network * features * block_lanes
    grads_of += network * features * block_lanes
    losses += network * count
    rates += network * count * 3
    starts += network * starts_size
    starts_back += network * starts_back_size
    columns += network * entries
    which += network * entries
    rows_of += network * entries
    x += network * x_network
    y += network * y_network
    lanes = tl.arange(0, block_lanes)
    for step in range(count):
        # Forward.
        for layer in range(layers):
            outputs = tl.load(table + layer * 6 + 1)
            bias_at = tl.load(table + layer * 6 + 2)
            starts_at = tl.load(table + layer * 6 + 3)
            entries_at = tl.load(table + layer * 6 + 5)
            source = x
            if layer > 0:
                source = outputs_of + tl.load(table + (layer - 1) * 6 + 2) * block_lanes
            for start in range(0, outputs, block_rows):
                rows = start + tl.arange(0, block_rows)
                inside = rows < outputs
                first = tl.load(starts + starts_at + rows, mask=inside, other=0)
                stop = tl.load(starts + starts_at + rows + 1, mask=inside, other=0)
                bias = tl.load(values + bias_at + rows, mask=inside, other=0.0)
                total = tl.zeros((block_rows, block_lanes), dtype=tl.float32) + bias[:, None]
                total = survivors(
                    total, source, first, stop, which + entries_at, values + features + entries_at,
                    columns + entries_at, lanes, False, block_lanes,
                )  # fmt: skip
                if layer < layers - 1:
                    total = tl.where(total <= 0, 0.0, total)  # which keeps NaN
                tl.store(
                    outputs_of + (bias_at + rows)[:, None] * block_lanes + lanes[None, :], total, mask=inside[:, None]
                )
            tl.debug_barrier()
        # The loss, and its gradient by the last layer's outputs.
        last = tl.load(table + (layers - 1) * 6 + 2)
        each = tl.arange(0, block_classes)
        places = (last + each)[:, None] * block_lanes + lanes[None, :]
        known = (each < classes)[:, None]
        z = tl.load(outputs_of + places, mask=known, other=float("-inf"))
        target = tl.load(y + step * block_lanes + lanes)
        top = tl.max(z, 0)
        powers = tl.exp(z - top[None, :])
        whole = tl.sum(powers, 0)
        hit = each[:, None] == target[None, :]
        loss = top + tl.log(whole) - tl.sum(tl.where(hit, z, 0.0), 0)
        real = lanes < examples
        tl.store(losses + step, tl.sum(tl.where(real, loss, 0.0), 0) / examples)
        off = (powers / whole[None, :] - tl.where(hit, 1.0, 0.0)) / examples
        tl.store(grads_of + places, tl.where(real[None, :], off, 0.0), mask=known)
        tl.debug_barrier()
        # The gradients by the other layers' outputs, behind their ReLUs.
        for above in range(layers - 1):
            layer = layers - 1 - above
            inputs = tl.load(table + layer * 6)
            bias_at = tl.load(table + layer * 6 + 2)
            back_at = tl.load(table + layer * 6 + 4)
            entries_at = tl.load(table + layer * 6 + 5)
            input_at = tl.load(table + (layer - 1) * 6 + 2)
            for start in range(0, inputs, block_rows):
                rows = start + tl.arange(0, block_rows)
                inside = rows < inputs
                first = tl.load(starts_back + back_at + rows, mask=inside, other=0)
                stop = tl.load(starts_back + back_at + rows + 1, mask=inside, other=0)
                total = survivors(
                    tl.zeros((block_rows, block_lanes), dtype=tl.float32), grads_of + bias_at * block_lanes, first,
                    stop, which + entries_at, values + features + entries_at, rows_of + entries_at, lanes, True,
                    block_lanes,
                )  # fmt: skip
                there = (input_at + rows)[:, None] * block_lanes + lanes[None, :]
                out = tl.load(outputs_of + there, mask=inside[:, None], other=0.0)
                tl.store(grads_of + there, tl.where(out <= 0, 0.0, total), mask=inside[:, None])
            tl.debug_barrier()
        # The gradients by values and biases.
        for layer in range(layers):
            outputs = tl.load(table + layer * 6 + 1)
            bias_at = tl.load(table + layer * 6 + 2)
            starts_at = tl.load(table + layer * 6 + 3)
            entries_at = tl.load(table + layer * 6 + 5)
            source = x
            if layer > 0:
                source = outputs_of + tl.load(table + (layer - 1) * 6 + 2) * block_lanes
            for start in range(0, outputs, block_rows):
                rows = start + tl.arange(0, block_rows)
                inside = rows < outputs
                first = tl.load(starts + starts_at + rows, mask=inside, other=0)
                stop = tl.load(starts + starts_at + rows + 1, mask=inside, other=0)
                there = (bias_at + rows)[:, None] * block_lanes + lanes[None, :]
                grad = tl.load(grads_of + there, mask=inside[:, None], other=0.0)
                tl.store(gradients + bias_at + rows, tl.sum(grad, 1), mask=inside)
                for place in range(tl.max(stop - first, 0)):
                    here = first + place < stop
                    column = tl.load(columns + entries_at + first + place, mask=here, other=0)
                    read = tl.load(
                        source + column[:, None] * block_lanes + lanes[None, :], mask=here[:, None], other=0.0
                    )
                    tl.store(gradients + features + entries_at + first + place, tl.sum(grad * read, 1), mask=here)
        tl.debug_barrier()
        # The update, of all numbers alike: each is read and written by one thread.
        rate = tl.load(rates + step * 3)
        stride = tl.load(rates + step * 3 + 1)
        widen = tl.load(rates + step * 3 + 2)
        for start in range(0, size, block_update):
            at = start + tl.arange(0, block_update)
            inside = at < size
            p = tl.load(values + at, mask=inside, other=0.0)
            g = tl.load(gradients + at, mask=inside, other=0.0)
            if decayed == "l2":
                g = g + p * decay
            if kind == "adam":
                m = tl.load(mean + at, mask=inside, other=0.0)
                v = tl.load(variance + at, mask=inside, other=0.0)
                m = m + (g - m) * first_beta_rest
                v = v * second_beta + g * g * second_beta_rest
                if decayed == "decoupled":
                    p = p * (1 - rate * decay)
                p = p - tl.div_rn(stride * m, tl.sqrt_rn(v) * widen + epsilon)
                tl.store(mean + at, m, mask=inside)
                tl.store(variance + at, v, mask=inside)
            else:
                if kind != "sgd":
                    m = tl.load(mean + at, mask=inside, other=0.0) * momentum + g
                    tl.store(mean + at, m, mask=inside)
                    g = g + m * momentum if kind == "nesterov" else m
                p = p - rate * g
            tl.store(values + at, p, mask=inside)
        tl.debug_barrier()
        x += x_step
