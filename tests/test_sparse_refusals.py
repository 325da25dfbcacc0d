"""Forms of operations that the sparse engine has no lowering for: one line that says so, never another exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from operation_forms import ARGUMENTS, BUFFERS, LENGTH, PARAMS, WIDTH, Forms, aten, call, operands
from sparse_programs import check, check_inference, kernels  # noqa: F401
from torch import Tensor, nn
from torch.fx import Graph, Node

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.capture import TRACED_BATCH, Captured, captured
from lthfunc.sparse.kernels import build
from lthfunc.sparse.lowerings.interface import ARRANGED
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.trees.outputs import outputs_of

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

#: Those of PyTorch, that is; what stands for the program of one token is no operation of a network.
OPERATIONS = sorted((each for each in ARRANGED if isinstance(each, torch._ops.OpOverload)), key=str)


@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
def test_a_form_is_computed_or_refused_in_a_line(operation: Any) -> None:
    forms = ARGUMENTS[operation._schema.name.removeprefix("aten::")]
    count = len(_operands()[1])
    assert sum(_tries(operation, forms, which) for which in range(count)) > 0


def _operands() -> tuple[Graph, list[Node], dict[str, Node]]:
    graph, nodes = Graph(), {}
    for name, leaf in {**PARAMS, **BUFFERS, "x": torch.randn(TRACED_BATCH, LENGTH, WIDTH)}.items():
        nodes[name] = graph.placeholder(name)
        nodes[name].meta["val"] = leaf
    nodes["zeros"] = call(graph, aten.zeros.default, [1, TRACED_BATCH, WIDTH])
    nodes["one"] = call(graph, aten.full.default, [], 1.0)
    nodes["turned"] = call(graph, aten.transpose.int, nodes["x"], 1, 2)
    return graph, [*operands(graph, nodes)], nodes


def _tries(operation: Any, forms: Forms, which: int) -> int:
    """How many forms with this operand PyTorch takes; each has a program, or is refused."""
    taken = 0
    for number in range(8):
        graph, found, nodes = _operands()
        arguments = forms(found[which], nodes)[number : number + 1]
        if not arguments:
            break
        try:
            call(graph, operation, *arguments[0])
        except (RuntimeError, IndexError, ValueError):
            continue
        taken += 1
        graph.output([nodes["x"]])
        made = Captured(graph, tuple(PARAMS), tuple(BUFFERS), "Net", outputs_of(torch.zeros(1)), {})
        try:
            program_of(
                made, PARAMS, BUFFERS, {}, batch=3, stored=Stored((LENGTH, WIDTH), torch.float32),
                epilogue=Epilogue(None, gradients=False),
            )  # fmt: skip
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    return taken


Body = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Tokens, something done with them, and three classes."""

    truths: Tensor
    integers: Tensor

    def __init__(self, body: Body) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.inner = body, nn.Linear(WIDTH, WIDTH)
        self.table = nn.Parameter(torch.randn(1, LENGTH, WIDTH))
        self.column, self.vector = nn.Parameter(torch.randn(LENGTH - 1, 1, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.examples = nn.Parameter(torch.randn(TRACED_BATCH, LENGTH, WIDTH))
        self.register_buffer("truths", torch.arange(WIDTH) % 2 == 0)
        self.register_buffer("integers", torch.arange(WIDTH))
        self.head = nn.LazyLinear(3)
        self.eval()(torch.zeros(TRACED_BATCH, LENGTH, WIDTH))
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(self, torch.tanh(self.inner(x))).flatten(1))
        return found


def first_steps(x: Tensor) -> Tensor:
    """(steps, batch, features) without the last one."""
    return x.transpose(0, 1)[:-1]


COMPUTED: dict[str, Body] = {
    "zeros before the tokens": lambda net, x: torch.cat([x.new_zeros(len(x), 1, WIDTH), x[:, 1:]], 1),
    "ones as factors": lambda net, x: x * x.new_ones(len(x), LENGTH, WIDTH) * x.new_ones(len(x), 1, 1),
    "ones that sum over tokens": lambda net, x: x + x.new_ones(len(x), LENGTH, LENGTH) @ x,
    "numbers, turned and activated": lambda net, x: x - torch.tanh(x.new_full((len(x), WIDTH, LENGTH), 0.5)).mT,
    "numbers through a layer": lambda net, x: x + net.inner(x.new_full((len(x), LENGTH, WIDTH), 0.5)),
    "numbers as keys": lambda net, x: F.scaled_dot_product_attention(x, x.new_full((len(x), 3, WIDTH), 0.5), x[:, :3]),
    "zeros before the first step": lambda net, x: torch.cat(
        [torch.zeros(1, len(x), WIDTH, dtype=x.dtype), first_steps(x)]
    ).transpose(0, 1),
    "steps after a parameter of steps": lambda net, x: (net.column + first_steps(x)).transpose(0, 1),
    "steps before a parameter of steps": lambda net, x: (first_steps(x) - net.column).transpose(0, 1),
    "features beside features": lambda net, x: torch.cat([torch.relu(net.inner(x[:, 0])), net.inner(x[:, 1])], 1),
    "rows below rows": lambda net, x: torch.cat([x.unsqueeze(1), x.unflatten(1, (1, -1)) * 3], 2),
    "truths": lambda net, x: x * net.truths,
    "integers": lambda net, x: x[:, 1] * net.integers,
    "t of one dimension": lambda net, x: x + net.vector.t(),
}  # fmt: skip


@pytest.mark.parametrize("body", COMPUTED.values(), ids=COMPUTED)
def test_it_is_computed(body: Body) -> None:
    net = Net(body)
    used = {name for name, leaf in net.named_parameters() if name in ("table", "column", "vector", "examples")}
    for name in used:  # a parameter that nothing reads is none of the sparse engine's
        if name not in body.__code__.co_names:
            delattr(net, name)
    check(net, (LENGTH, WIDTH), batch=19, density=0.7)
    check_inference(net, (LENGTH, WIDTH), density=0.7)


REFUSED: dict[str, tuple[Body, str]] = {
    "dropout of a parameter": (
        lambda net, x: x + F.dropout(net.table, 0.5, net.training), "dropout of a parameter or buffer"
    ),
    "dropout of all": (lambda net, x: F.dropout(x, 1 - 1e-11, net.training), "dropout that drops everything"),
    "examples": (lambda net, x: x + net.examples, "add of the batch and another dimension"),
    "interpolation": (
        lambda net, x: x[:, 0] + F.interpolate(net.table, size=WIDTH, mode="linear")[:, 1],
        r"upsample_linear1d of other dimensions than \(batch, channels, length\)",
    ),
    "average": (
        lambda net, x: x + F.adaptive_avg_pool1d(net.table, WIDTH),
        r"adaptive_avg_pool1d of other dimensions than \(batch, channels, length\)",
    ),
    "layer norm": (
        lambda net, x: F.layer_norm(x, (WIDTH,), net.vector.view(-1)),
        "layer_norm with weights that are no parameters of their own",
    ),
    "group norm": (
        lambda net, x: F.group_norm(x[:, 1], 2, net.vector.view(-1)),
        "group_norm with weights that are no parameters of their own",
    ),
    "zeros of batch last": (
        lambda net, x: x.mT + torch.zeros(WIDTH, len(x)).mT[..., None],
        "zeros of sizes in which the batch is not the first",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "words"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(body: Body, words: str) -> None:
    model = lf.from_module(Net(body), warn=False)
    params, buffers = model.init(0)
    with pytest.raises(UserError, match=f"no rule for {words}"):
        program_of(
            captured(model, (LENGTH, WIDTH), training=True), params, buffers, {}, batch=3,
            stored=Stored((LENGTH, WIDTH), torch.float32), epilogue=Epilogue(),
        )  # fmt: skip


def test_uint8_of_other_shapes_than_images_is_refused() -> None:
    model = lf.from_module(Net(lambda net, x: x), warn=False)
    params, buffers = model.init(0)
    graph = captured(model, (LENGTH, WIDTH), training=False)
    with pytest.raises(UserError, match=r"reads uint8 as \(features\) or \(channels, height, width\), not as \(5, 4\)"):
        program_of(
            graph, params, buffers, {}, batch=3, stored=Stored((LENGTH, WIDTH), torch.uint8), epilogue=Epilogue(None),
        )  # fmt: skip
