"""A graph in parts: what the machine computes, and what is left to PyTorch.

An operation goes to the machine if it has a lowering. Parts take turns: PyTorch's first, then the machine's, and so on;
an operation is in the first turn that comes after all that it reads. A part of the machine without a layer's product
would only cost the way in and out, so it is left to PyTorch as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from lthfunc.errors import UserError
from lthfunc.sparse.batch_sizes import size_free
from lthfunc.sparse.boundaries import can_be_handed_out, handed_in
from lthfunc.sparse.builder import Builder
from lthfunc.sparse.capture import OTHER_BATCH, TRACED_BATCH, Captured, form_of, line_of, operation_of
from lthfunc.sparse.constants import constants_read, is_constant
from lthfunc.sparse.interpretation import (
    add_leaves,
    canonical,
    counts_steps,
    described,
    fixed_buffers,
    inputs_of,
    leaves_of,
    lowered,
    results_of,
)
from lthfunc.sparse.lowerings.interface import Unsupported, aten
from lthfunc.sparse.lowerings.recurrent import RECURRENT_LAYERS
from lthfunc.sparse.lowerings.table import LOWERINGS
from lthfunc.training.engines.aliases import changed_by, memory_of

#: Layers that make a part worth its way in and out, and dtypes that the machine takes in.
_PRODUCTS = (
    aten.linear.default, aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding,
    aten.conv_transpose1d.default, aten.conv_transpose2d.input, *RECURRENT_LAYERS,
)  # fmt: skip
_TAKEN = (torch.float32, torch.int64, torch.bool)
#: Operations whose results have no gradient, whatever they read.
_WITHOUT_GRADIENT = (aten.detach.default,)


class Part(NamedTuple):
    """Operations that are computed in one go.

    machine: whether the sparse engine's machine computes them. reads: values from outside, gives: values that others
    read, each once. params, buffers: the names of those that the operations read.
    """

    machine: bool
    nodes: tuple[Node, ...]
    reads: tuple[Node, ...]
    gives: tuple[Node, ...]
    params: tuple[str, ...]
    buffers: tuple[str, ...]


class Partition(NamedTuple):
    """parts: in the order in which they are computed. counters: buffers that count calls. quiet: operations that take
    no gradient (`torch.no_grad`). differentiable: values with a gradient. frozen: names of leaves without one. refused:
    the machine's refusals in words. constants: operations that depend on no input and on nothing that changes."""

    parts: tuple[Part, ...]
    counters: tuple[str, ...]
    quiet: frozenset[Node]
    differentiable: frozenset[Node]
    frozen: frozenset[str]
    refused: tuple[str, ...]
    constants: tuple[Node, ...]


class Input(NamedTuple):
    """batched: whether examples lie along its first dimension. needs: whether its gradient is wanted."""

    batched: bool
    needs: bool


#: Gives each operation of a graph with that of a trace on another batch size.
Twins = Callable[[], Mapping[Node, Node]]


def partition(
    captured: Captured, inputs: tuple[Input, ...], twins: Twins, buffers: Mapping[str, Tensor], *, gradients: bool,
    frozen: Container[str] = (),
) -> Partition:  # fmt: skip
    """The parts of a graph. buffers: the module's. gradients: whether any are taken. frozen: parameters that get none.

    The graph is changed: whatever reads a tensor after it was changed in place reads the operation that changed it.
    Raises UserError for a graph that changes a parameter, or a mode of PyTorch other than gradients.
    """
    return _Partitioning(captured, inputs, twins, buffers, gradients, frozen).done()


def _places(captured: Captured) -> dict[Node, int]:
    return {node: place for place, node in enumerate(captured.graph.nodes)}


class _Partitioning:
    def __init__(
        self, captured: Captured, inputs: tuple[Input, ...], twins: Twins, buffers: Mapping[str, Tensor],
        gradients: bool, frozen: Container[str],
    ) -> None:  # fmt: skip
        canonical(captured)
        self._captured, self._twins, self._gradients = captured, twins, gradients
        self._fixed = {name: buffers[name] for name in fixed_buffers(captured)}
        self._constants: list[Node] = []
        self._leaves, self._inputs, self._results = leaves_of(captured), inputs_of(captured), results_of(captured)
        self._frozen = frozenset(
            leaf.name for leaf in self._leaves.values() if leaf.name in frozen or leaf.name in captured.buffers
        )
        self._at = _places(captured)
        self._counters: dict[Node, str] = {}
        self._quiet: set[Node] = set()
        self._operations: list[Node] = []
        self._sort()
        self._batched = {node for node, each in zip(self._inputs, inputs, strict=True) if each.batched}
        self._differentiable = self._with_gradient(
            node for node, each in zip(self._inputs, inputs, strict=True) if each.needs
        )

    def done(self) -> Partition:
        to_pytorch: set[Node] = set()
        while True:
            machine, refused = self._lowerable(to_pytorch)
            parts = self._parts(machine.keys())
            small = {node for part in parts if part.machine and not _has_product(part) for node in part.nodes}
            kept = {node for part in parts if part.machine for node in part.gives
                    if not can_be_handed_out(machine[node])}  # fmt: skip
            if not (small or kept):
                break
            to_pytorch |= small or kept
        return Partition(
            tuple(parts),
            tuple(self._counters.values()),
            frozenset(self._quiet),
            frozenset(self._differentiable),
            self._frozen,
            refused,
            tuple(self._constants),
        )

    def _sort(self) -> None:
        """Tell operations from counters and changes of modes."""
        on = True
        for node in self._captured.graph.nodes:
            if node.op != "call_function":
                continue
            first = node.args[0] if node.args else None
            if node.target is torch._C._set_grad_enabled:
                on = bool(first)
            elif isinstance(first, Node) and counts_steps(node, self._leaves.get(first)) and not node.users:
                self._counters[node] = self._leaves[first].name
            elif not isinstance(node.target, OpOverload) and node.target.__module__ not in ("_operator", "builtins"):
                raise UserError(f"sparse_module: {self._captured.name} cannot be traced: it uses {self._words(node)}")
            else:
                changed = {memory_of(each) for each in changed_by(node)}
                for leaf, told in self._leaves.items():
                    if told.name in self._captured.params and memory_of(leaf) in changed:
                        raise UserError(f"sparse_module: {self._words(node)} changes the parameter {told.name}")
                self._operations.append(node)
                if not on:
                    self._quiet.add(node)

    def _words(self, node: Node) -> str:
        return f"{operation_of(node)}{line_of(node)}"

    def _with_gradient(self, inputs: Iterable[Node]) -> set[Node]:
        found = {node for node, leaf in self._leaves.items() if leaf.name not in self._frozen}
        found.update(inputs)
        for node in self._operations:
            value = node.meta.get("val")
            takes = node not in self._quiet and node.target not in _WITHOUT_GRADIENT
            takes = takes and not (isinstance(value, Tensor) and not value.is_floating_point())
            if takes and any(each in found for each in node.all_input_nodes):
                found.add(node)
        return found

    def _lowerable(self, to_pytorch: set[Node]) -> tuple[dict[Node, Any], tuple[str, ...]]:
        """(what operations with a lowering give, the others in words): by trying, with no weight left."""
        b = Builder(1, self._gradients, fixed=self._fixed, size_free=size_free(lambda: self._twins()))
        self._constants.clear()
        leaves = zip(self._captured.placeholders, self._captured.params, strict=False)
        matrices = [name for node, name in leaves if node.meta["val"].ndim > 1]
        nothing = dict.fromkeys(matrices, torch.zeros(0, dtype=torch.int64))
        add_leaves(b, self._leaves, nothing, self._frozen)
        known: dict[Node, Any] = dict(self._leaves)
        found: dict[Node, Any] = {}
        refused: dict[str, None] = {}

        def is_fixed(node: Node) -> bool:
            return node.op == "get_attr" or node in self._leaves or is_constant(known.get(node))

        def given(node: Node) -> Any:
            if node.op == "get_attr":
                return self._captured.constants[str(node.target)].clone()
            if node not in known:
                shape = self._loadable(node)
                if shape is None:
                    raise Unsupported(f"of {form_of(node)}")
                known[node] = handed_in(b, shape, node.meta["val"].dtype)
            return known[node]

        for node in self._operations:
            if node in self._quiet or node in to_pytorch:
                continue
            try:
                if not node.users and node not in self._results:
                    raise Unsupported("whose value is not used")
                known_kind = node.target in LOWERINGS or node.target is operator.getitem
                if not known_kind and not all(map(is_fixed, node.all_input_nodes)):
                    raise Unsupported
                args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), given)
                value = lowered(b, node, args, kwargs, self._at)
                if is_constant(value) and node in self._results:
                    continue
                known[node] = value
                if is_constant(value):
                    self._constants.append(node)
                else:
                    found[node] = value
            except Unsupported as error:
                refused[described(node, str(error), self._captured.name)] = None
        return found, tuple(refused)

    def _loadable(self, node: Node) -> tuple[int, ...] | None:
        """The shape of an example that the machine can take in, or None."""
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dtype not in _TAKEN or value.ndim < 2:
            return None
        if node.op == "placeholder":
            batched = node in self._batched
        else:
            batched = value.shape[0] == TRACED_BATCH and self._twins()[node].meta["val"].shape[0] == OTHER_BATCH
        return tuple(value.shape[1:]) if batched and value.numel() else None

    def _parts(self, machine: Container[Node]) -> list[Part]:
        before = self._orders()
        turns: dict[Node, int] = {}
        operations = [node for node in self._operations if node not in set(self._constants)]
        for node in operations:
            earlier = {*node.all_input_nodes, *before.get(node, ())} & turns.keys()
            turns[node] = max((turns[each] + (each in machine and node not in machine) for each in earlier), default=0)
        for node in operations:  # what begins from nothing, as a state of zeros does, is made where it is read
            if node in machine and not node.all_input_nodes:
                turns[node] = min((turns[user] for user in node.users if user in turns), default=0)
        keys = sorted({(turns[node], node in machine) for node in operations})
        groups = {key: [node for node in operations if (turns[node], node in machine) == key] for key in keys}
        return [self._part(is_machine, nodes) for (_, is_machine), nodes in groups.items()]

    def _orders(self) -> dict[Node, list[Node]]:
        """Operations that come before an operation though it reads nothing of them: it changes what they read."""
        order: dict[Node, list[Node]] = {}
        seen: dict[int, list[Node]] = {}
        for node in self._operations:
            written = {memory_of(each) for each in _written(node)}
            for memory in written:
                order.setdefault(node, []).extend(seen.get(memory, ()))
            for memory in {memory_of(each) for each in (node, *node.all_input_nodes)} - {0}:
                seen.setdefault(memory, []).append(node)
        return order

    def _part(self, machine: bool, nodes: list[Node]) -> Part:
        gives = [node for node in nodes if node in self._results or any(user not in nodes for user in node.users)]
        needed = constants_read(nodes, self._constants)
        if not machine:  # which computes constants with the rest
            nodes = sorted([*needed, *nodes], key=self._at.__getitem__)
        inside = {*nodes, *needed}
        read = {each: None for node in inside for each in node.all_input_nodes if each not in inside}
        leaves = [self._leaves[each].name for each in read if each in self._leaves]
        return Part(
            machine, tuple(nodes),
            tuple(each for each in read if each not in self._leaves and each.op != "get_attr"), tuple(gives),
            tuple(each for each in leaves if each in self._captured.params),
            tuple(each for each in leaves if each in self._captured.buffers),
        )  # fmt: skip


def _has_product(part: Part) -> bool:
    return any(node.target in _PRODUCTS for node in part.nodes)


def _written(node: Node) -> list[Node]:
    """What an operation changes, running statistics included."""
    if node.target is aten.batch_norm.default and node.args[5]:
        return [each for each in node.args[3:5] if isinstance(each, Node)]
    return changed_by(node)
