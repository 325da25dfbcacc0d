"""A module as a short graph of ATen operations: traced once on fake tensors, nothing computed."""

from __future__ import annotations

import functools
import logging
import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses import FakeTensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from lthfunc.errors import UserError
from lthfunc.sparse.einsum import name_einsums
from lthfunc.sparse.faithful import Call, why_unfaithful
from lthfunc.sparse.linear_layers import name_linear_layers
from lthfunc.tracebacks import first_line, user_line, user_location
from lthfunc.training.engines.aliases import changed_by
from lthfunc.trees.model import Model, example_input
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.outputs import Outputs, outputs_of
from lthfunc.trees.types import Buffers, Params

_REFUSED = re.compile(r"argument of type: <class '(?:\w+\.)*(\w+)'>")


class Captured(NamedTuple):
    """graph: its first placeholders are the parameters and buffers of these names, those after them the inputs.

    name: of the model. outputs: how the tensors that the graph gives lie in what the module gives. constants: tensors
    made in forward, which ``get_attr`` nodes name. other: traces the same on another batch size (`OTHER_BATCH`).
    """

    graph: Graph
    params: tuple[str, ...]
    buffers: tuple[str, ...]
    name: str
    outputs: Outputs
    constants: dict[str, Tensor]
    other: Callable[[], Captured] | None = None

    @property
    def placeholders(self) -> list[Node]:
        """Those of the parameters, of the buffers, and of the inputs, in this order."""
        return [node for node in self.graph.nodes if node.op == "placeholder"]


class CannotTraceError(UserError):
    """A module that is no graph. why: without the name of who asked."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"engine: sparse cannot trace {name}{why}")
        self.why = why


#: Examples in the traced batch: a number that few networks have as a size, so that a view can be told from a mistake.
TRACED_BATCH = 11
#: Examples in the batch of a second trace: numbers that differ between both depend on the batch.
OTHER_BATCH = 23


@functools.lru_cache(maxsize=16)  # a ResNet takes half a second, and several ask for it
def captured(
    model: Model,
    shape: tuple[int, ...],
    *,
    training: bool,
    examples: int = TRACED_BATCH,
    dtype: torch.dtype = torch.float32,
) -> Captured:
    """The model's operations on inputs of `shape`, in one of its modes, as it is on so many examples.

    dtype: of parameters, buffers and inputs that are float32 in the model. Raises UserError where it cannot be traced,
    or computes something else than its operations do.
    """
    module = model.training if training else model.evaluating

    def typed(leaf: Tensor) -> Tensor:
        return leaf.to(dtype) if leaf.dtype == torch.float32 else leaf

    params = {name: typed(leaf) for name, leaf in module.named_parameters()}
    buffers = {name: typed(leaf).clone() for name, leaf in module.named_buffers()}
    first = examples == TRACED_BATCH
    inputs = (typed(example_input(model, shape, examples)),)
    found = captured_call(
        model.name, lambda leaves, inputs: functional_call(module, leaves, inputs), params, buffers, inputs,
        training=training, located=first, checked=first and not model.pure,
    )  # fmt: skip
    return found._replace(other=lambda: captured(model, shape, training=training, examples=OTHER_BATCH, dtype=dtype))


def captured_tokens(model: Model, length: int, *, training: bool) -> Captured:
    """The same of sequences of so many tokens."""
    return captured(model, (length,), training=training)


def captured_call(
    name: str,
    call: Call,
    params: Params,
    buffers: Buffers,
    inputs: tuple[Tensor, ...],
    *,
    training: bool,
    located: bool = True,
    checked: bool = True,
) -> Captured:
    """The operations of a call of a module with these parameters, buffers and inputs; nothing of them is changed.

    name: of the module in messages. training: whether gradients are taken. located: whether operations know their line
    of code. checked: whether it is compared with the call itself. Raises as `captured` does.
    """
    found: dict[str, Any] = {}

    def forward(params: Params, buffers: Buffers, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        leaves = {**params, **buffers}
        outputs = outputs_of(call(leaves, inputs))
        found["outputs"] = outputs._replace(tensors=[])
        found["replaced"] = [name for name in buffers if leaves[name] is not buffers[name]]
        return outputs.tensors

    # Before decompositions, so that a convolution is one node, and so is a normalisation. Gradients are on, so that a
    # forward that turns them off for a while turns them on again.
    trace = make_fx(forward, tracing_mode="fake", pre_dispatch=True, record_stack_traces=located,
                    _allow_non_fake_inputs=True)  # fmt: skip
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), _unlogged():
            traced = trace(params, buffers, inputs)
    except Exception as error:
        branches = isinstance(error, GuardOnDataDependentSymNode)
        why = "Python's control flow depends on numbers of a tensor" if branches else _why(first_line(error))
        raise CannotTraceError(name, f"{user_location(error)}: {why}") from error
    if training and found["replaced"]:
        why = f": it puts another tensor in the place of the buffer {found['replaced'][0]}, instead of changing it"
        raise CannotTraceError(name, why)
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    leaves = set(placeholders[: len(params) + len(buffers)])
    name_einsums(traced.graph, leaves)
    name_linear_layers(traced.graph, leaves)
    _drop_dead(traced.graph)
    constants = {
        str(node.target): getattr(traced, str(node.target)) for node in traced.graph.nodes if node.op == "get_attr"
    }
    for node in traced.graph.nodes:
        if node.op != "get_attr":
            continue
        constant, user = constants[str(node.target)], next(iter(node.users), node)
        if not isinstance(constant, Tensor):
            why = f": {operation_of(user)} takes a {type(constant).__name__}, which is no tensor{line_of(user)}"
            raise CannotTraceError(name, why)
        if isinstance(constant, FakeTensor):
            why = f": {operation_of(user)} works on a tensor that the graph does not know, as .data is{line_of(user)}"
            raise CannotTraceError(name, why)
    graph = Captured(traced.graph, tuple(params), tuple(buffers), name, found["outputs"], constants)
    if checked and (why := why_unfaithful(graph, call, params, buffers, inputs, training=training)):
        raise CannotTraceError(name, why)
    return graph


def _why(line: str) -> str:
    """What an error of PyTorch says: of an object that 2.11 has no place for in a graph, in later ones' words."""
    refused = _REFUSED.fullmatch(line)
    return line if refused is None else f"an operation takes a {refused[1]}, which is no tensor"


@contextmanager
def _unlogged() -> Iterator[None]:
    """Keep PyTorch from printing the traceback of an error of fake tensors, which is told in a line."""
    logger, silent = logging.getLogger("torch._subclasses.fake_tensor"), lambda record: False
    logger.addFilter(silent)
    try:
        yield
    finally:
        logger.removeFilter(silent)


def _drop_dead(graph: Graph) -> None:
    """Leave out operations whose results nothing reads, unless they change what they are given."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not _changes(node):
            graph.erase_node(node)


def _changes(node: Node) -> bool:
    """Whether an operation changes something: it says so, it moves running statistics, or it is none of a tensor."""
    known = isinstance(node.target, OpOverload) or node.target is operator.getitem
    return not known or bool(changed_by(node)) or node.target is torch.ops.aten.batch_norm.default


def operation_of(node: Node) -> str:
    """What an operation is called, whether or not it changes its argument: "relu"."""
    if not isinstance(node.target, OpOverload):
        return str(getattr(node.target, "__name__", node.target))
    name = node.target._schema.name.rpartition("::")[2]
    return name if name.endswith("__") else name.removesuffix("_")


def line_of(node: Node) -> str:
    """Where in the user's code an operation comes from: " (line 12 of net.py: x = x.cumsum(1))", or nothing."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return user_line((file, int(number)) for file, number in frames)


def form_of(node: Node) -> str:
    """A value in words, its examples as n: "a tensor of shape (n, 3)"."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return "what is no tensor"
    first, *rest = value.shape or ("",)
    sizes = ["n" if first == TRACED_BATCH else str(first), *map(str, rest)]
    return f"a tensor of shape ({', '.join(sizes)}{',' if len(sizes) == 1 and sizes[0] else ''})"
