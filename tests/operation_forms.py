"""Arguments of operations, with each kind of value and leaf in each place: what is computed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.fx import Graph, Node

from lthfunc.sparse.capture import TRACED_BATCH

aten = torch.ops.aten
LENGTH, WIDTH = 5, 4
PARAMS = {
    "table": torch.randn(1, LENGTH, WIDTH), "examples": torch.randn(TRACED_BATCH, LENGTH, WIDTH),
    "vector": torch.randn(WIDTH), "square": torch.randn(WIDTH, WIDTH), "number": torch.randn(()),
    "kernel": torch.randn(LENGTH, LENGTH, 1), "bias": torch.randn(WIDTH), "weight": torch.randn(WIDTH, WIDTH),
    "three": torch.randn(3 * WIDTH, WIDTH), "four": torch.randn(4 * WIDTH, WIDTH),
}  # fmt: skip
BUFFERS = {
    "floats": torch.randn(WIDTH), "integers": torch.arange(WIDTH), "truths": torch.arange(WIDTH) > 1,
    "tokens": torch.zeros(TRACED_BATCH, LENGTH, dtype=torch.int64),
    "mean": torch.zeros(LENGTH), "variance": torch.ones(LENGTH),
}  # fmt: skip


def operands(graph: Graph, nodes: dict[str, Node]) -> Iterator[Node]:
    """What an operation may be given: the value, leaves of all kinds, leaves seen otherwise, and zeros."""
    x = nodes["x"]
    yield x
    yield call(graph, aten.transpose.int, x, 0, 1)
    yield call(graph, aten.slice.Tensor, x, 1, 1, 3)
    yield call(graph, aten.flatten.using_ints, x, 1)
    for name in ("table", "examples", "vector", "square", "number", "kernel", *BUFFERS):
        yield nodes[name]
    yield call(graph, aten.view.default, nodes["vector"], [-1])
    yield call(graph, aten.view.default, nodes["square"], [WIDTH, WIDTH])
    yield call(graph, aten.view.default, nodes["kernel"], [LENGTH, LENGTH, 1])
    yield call(graph, aten.zeros.default, [1, TRACED_BATCH, WIDTH])
    yield call(graph, aten.zeros.default, [TRACED_BATCH, 1, WIDTH])


def call(graph: Graph, operation: Any, *args: Any) -> Node:
    """A node whose result PyTorch computes, from arguments that are left alone. Raises what PyTorch raises."""
    values = torch.fx.node.map_arg(args, lambda each: each.meta["val"].clone())
    found = operation(*values)
    node = graph.call_function(operation, args)
    node.meta["val"] = found
    return node


def recurrent(it: Node, nodes: dict[str, Node], weight: str, zeros: Any) -> list[tuple[Any, ...]]:
    """Of sequences alone, in either order of dimensions: PyTorch reads beyond the memory of others."""
    shape, kind = it.meta["val"].shape, it.meta["val"].dtype
    found: list[tuple[Any, ...]] = []
    for batch_first in (False, True):
        rest = [nodes[weight]] * 2, False, 1, 0.0, True, False, batch_first
        if kind == torch.float32 and len(shape) == 3 and shape[2] == WIDTH and shape[1 - batch_first] == TRACED_BATCH:
            found.append((it, zeros, *rest))
    if shape == (1, TRACED_BATCH, WIDTH):
        states = [it, it] if isinstance(zeros, list) else it
        found.append((nodes["x"], states, [nodes[weight]] * 2, False, 1, 0.0, True, False, True))
    return found


Forms = Callable[[Any, Any], list[tuple[Any, ...]]]
#: Of each operation, arguments with an operand `it` in each place, beside the value x.
FORMS: dict[str, Forms] = {
    "alias": lambda it, n: [(it,)],
    "contiguous clone neg relu relu_ gelu gelu_ hardsigmoid hardsigmoid_ hardswish hardswish_ relu6 relu6_ sigmoid "
    "sigmoid_ silu silu_ tanh tanh_ t mT elu elu_ hardtanh hardtanh_ leaky_relu leaky_relu_ abs abs_ softplus mish "
    "mish_ log_sigmoid hardshrink softshrink selu selu_ celu celu_":
        lambda it, n: [(it,)],
    "threshold threshold_": lambda it, n: [(it, 0.5, 2.0)],
    "clamp clamp_ clip clip_": lambda it, n: [(it, -1, 1), (it, None, 2), (it, 0.5)],
    "clamp_min clamp_min_ clamp_max clamp_max_": lambda it, n: [(it, 1), (it, float("nan"))],
    "maximum minimum": lambda it, n: [(it, n["x"]), (n["x"], it), (it, it), (it, n["one"]), (n["one"], it)],
    "amax amin": lambda it, n: [(it, [0]), (it, [-1]), (it, [-1], True), (it, [1, 2]), (it,)],
    "max min": lambda it, n: [(it, 0), (it, -1), (it, 1, True), (it, n["x"]), (n["x"], it)],
    "add add_ sub sub_ mul mul_ div div_": lambda it, n: [(it, n["x"]), (n["x"], it), (it, it), (it, 2.0)],
    "rsub": lambda it, n: [(it, 1.0)],
    "square square_ sqrt sqrt_ rsqrt rsqrt_ reciprocal reciprocal_ exp exp_ trunc trunc_": lambda it, n: [(it,)],
    "pow": lambda it, n: [(it, 2), (it, 3.0), (it, -0.5), (it, 0.3)],
    "mean sum": lambda it, n: [(it, [0]), (it, [-1]), (it, [-1], True), (it, [1, 2])],
    "stack": lambda it, n: [([it, n["x"]], 1), ([n["x"], it], -1), ([it, it],)],
    "repeat": lambda it, n: [(it, [1, 2]), (it, [1, 1, 3]), (it, [TRACED_BATCH, 1, 1]), (it, [2, 1, 1])],
    "repeat_interleave": lambda it, n: [(it, 2, -1), (it, 3, 0), (it, 2)],
    "channel_shuffle": lambda it, n: [(it, 1), (it, 5)],
    "pixel_shuffle pixel_unshuffle": lambda it, n: [(it, 1), (it, 2)],
    "eq ne lt le gt ge": lambda it, n: [(it, 1.0), (it, n["x"]), (n["x"], it), (it, it)],
    "logical_not bitwise_not zeros_like ones_like": lambda it, n: [(it,)],
    "full_like": lambda it, n: [(it, 0.5)],
    "logical_and logical_or bitwise_and bitwise_or __and__ __or__":
        lambda it, n: [(it, n["truths"]), (n["truths"], it)],
    "masked_fill masked_fill_": lambda it, n: [(it, n["truths"], 0.5), (n["x"], it, 0.5), (n["x"], n["truths"], it)],
    "where": lambda it, n: [
        (n["truths"], it, n["x"]), (n["truths"], it, 0.5), (n["truths"], 0.5, it), (it, it, 0.5), (it, 0.5, -0.5),
    ],
    "to _to_copy": lambda it, n: [(it, torch.float32), (it,)],
    "type_as view_as reshape_as expand_as": lambda it, n: [(it, n["x"]), (n["x"], it)],
    "baddbmm": lambda it, n: [(it, n["x"], n["turned"]), (n["square"], it, n["turned"])],
    "narrow": lambda it, n: [(it, dim, start, 1) for dim in (0, 1, -1) for start in (0, 1, -1)],
    "view reshape _unsafe_view": lambda it, n: [(it, [-1]), (it, [TRACED_BATCH, -1])],
    "flatten": lambda it, n: [(it,), (it, 1)],
    "unflatten": lambda it, n: [(it, -1, [2, -1])],
    "transpose swapaxes movedim": lambda it, n: [(it, 0, -1), (it, 0, 0)],
    "permute": lambda it, n: [(it, order) for order in ([], [0], [1, 0], [2, 0, 1])],
    "unsqueeze": lambda it, n: [(it, 0), (it, -1)],
    "select": lambda it, n: [(it, dim, 0) for dim in (0, -1)],
    "expand": lambda it, n: [(it, [TRACED_BATCH, LENGTH, WIDTH])],
    "chunk": lambda it, n: [(it, 2, -1), (it, 2)],
    "split": lambda it, n: [(it, 2, -1), (it, 2), (it, [1, 3], -1)],
    "split_with_sizes": lambda it, n: [(it, [1, 3], -1)],
    "unbind": lambda it, n: [(it,), (it, -1)],
    "slice": lambda it, n: [(it, 0, 0, 1), (it, -1, 1, 3)],
    "cat": lambda it, n: [([it, n["x"]], dim) for dim in (0, 1, 2)] + [([it, it],), ([it, it], -1)],
    "pad": lambda it, n: [(it, [1, 1]), (it, [1, 1], "reflect")],
    "constant_pad_nd": lambda it, n: [(it, [1, 1]), (it, [-1, 0], 2.0)],
    "dropout dropout_": lambda it, n: [(it, share, training) for share in (0.5, 1 - 1e-11) for training in (0, 1)],
    "softmax log_softmax": lambda it, n: [(it, 0), (it, -1)],
    "squeeze": lambda it, n: [(it,), (it, 0), (it, [0, 1])],
    "bmm matmul": lambda it, n: [(it, n["turned"]), (n["turned"], it), (it, it), (it, n["weight"]), (n["x"], it)],
    "linear": lambda it, n: [(it, n["weight"], n["bias"]), (n["x"], it), (n["x"], n["weight"], it)],
    "conv1d": lambda it, n: [(it, n["kernel"]), (n["x"], it), (it, n["kernel"], None, [1], "same")],
    "conv_transpose1d": lambda it, n: [(it, n["kernel"]), (n["x"], it)],
    "glu": lambda it, n: [(it,), (it, 1), (it, 0)],
    "prelu": lambda it, n: [(it, n["vector"]), (n["x"], it), (it, it)],
    "flip": lambda it, n: [(it, [-1]), (it, [1, 2]), (it, [0]), (it, [])],
    "roll": lambda it, n: [(it, [1], [-1]), (it, [2, -1], [2, 1]), (it, [1], [0]), (it, [1])],
    "max_pool1d avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d": lambda it, n: [(it, [2])],
    "upsample_nearest1d _upsample_nearest_exact1d": lambda it, n: [(it, [8], None), (it, None, [2.0])],
    "upsample_linear1d": lambda it, n: [(it, [8], False, None), (it, [8], True, None)],
    "layer_norm": lambda it, n: [(it, [WIDTH]), (n["x"], [WIDTH], it), (n["x"], [WIDTH], n["bias"], it)],
    "rms_norm": lambda it, n: [(it, [WIDTH]), (n["x"], [WIDTH], it)],
    "group_norm": lambda it, n: [(it, 1), (n["x"], 1, it), (n["x"], 1, None, it)],
    "batch_norm": lambda it, n: [
        (it, None, None, n["mean"], n["variance"], True, 0.1, 1e-5, False),
        (n["x"], it, None, n["mean"], n["variance"], True, 0.1, 1e-5, False),
        (n["x"], None, None, it, it, True, 0.1, 1e-5, False),
    ],
    "scaled_dot_product_attention": lambda it, n: [(it, it, it), (n["x"], it, it), (n["x"], n["x"], n["x"], it)],
    "index": lambda it, n: [(it, [n["integers"]]), (n["square"], [it]), (n["vector"], [it]), (it, [None, it])],
    "embedding": lambda it, n: [(it, n["tokens"]), (n["weight"], it)],
    "rnn_tanh rnn_relu": lambda it, n: recurrent(it, n, "weight", n["zeros"]),
    "gru": lambda it, n: recurrent(it, n, "three", n["zeros"]),
    "lstm": lambda it, n: recurrent(it, n, "four", [n["zeros"]] * 2),
    "empty zeros ones": lambda it, n: [([TRACED_BATCH, 1],), ([2, TRACED_BATCH, 3],), ([3],)],
    "full": lambda it, n: [([TRACED_BATCH, 1], 0.5), ([TRACED_BATCH, 2, 3], True), ([TRACED_BATCH], 2), ([3], 0.5)],
    "new_zeros new_ones": lambda it, n: [(it, [TRACED_BATCH, 1]), (it, [2, TRACED_BATCH, 3]), (it, [])],
    "new_full": lambda it, n: [(it, [TRACED_BATCH, 1], 0.5), (it, [TRACED_BATCH], 2)],
}  # fmt: skip
ARGUMENTS: dict[str, Forms] = {name: forms for names, forms in FORMS.items() for name in names.split()}
