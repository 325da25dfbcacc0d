"""The graph that compaction works on: for any batch size, and functional wherever possible."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from lthfunc.errors import UserError
from lthfunc.sparse.batch_sizes import Resizing, twins
from lthfunc.sparse.capture import (
    OTHER_BATCH,
    TRACED_BATCH,
    CannotTraceError,
    Captured,
    captured,
    line_of,
    operation_of,
)
from lthfunc.tracebacks import first_line
from lthfunc.training.engines.aliases import changed_by, free_views, is_seen_elsewhere, memory_of
from lthfunc.trees.model import Model
from lthfunc.trees.types import Params

_aten = torch.ops.aten
_COPIES = (_aten.lift_fresh_copy.default, _aten.lift_fresh.default)


class Traced(NamedTuple):
    """A module's graph.

    with_units: nodes whose values have the batch along dimension 0 and units along dimension 1. opaque: nodes that
    share memory with a tensor that is changed in place while others still read it; they stay as they are.
    """

    captured: Captured
    with_units: frozenset[Node]
    opaque: frozenset[Node]


class CannotCompactError(UserError):
    """A network that cannot be compacted. why: without the name of who asked."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"compact: {name} cannot be compacted{why}")
        self.why = why


def cannot(captured: Captured, node: Node, why: str) -> UserError:
    """The error for an operation that cannot be compacted."""
    return CannotCompactError(captured.name, f": {operation_of(node)} {why}{line_of(node)}")


def fails(captured: Captured, node: Node, error: Exception) -> UserError:
    """Any error at an operation as a UserError."""
    return error if isinstance(error, UserError) else cannot(captured, node, f"fails ({first_line(error)})")


def traced(model: Model, params: Params, shape: tuple[int, ...], *, training: bool) -> Traced:
    """The model's graph for parameters of these dtypes and any batch size.

    Raises UserError where it cannot be traced, computes different operations at other batch sizes, or changes a
    parameter.
    """
    types = {params[name].dtype for name, leaf in model.training.named_parameters() if leaf.dtype == torch.float32}
    dtype = types.pop() if len(types) == 1 else torch.float32
    try:
        one, other = (
            captured(model, shape, training=training, examples=examples, dtype=dtype)
            for examples in (TRACED_BATCH, OTHER_BATCH)
        )
    except CannotTraceError as error:
        raise CannotCompactError(model.name, error.why) from error
    return _Tracing(one, other, training).done()


class _Tracing:
    """Builds a new graph from two traces, node by node."""

    def __init__(self, one: Captured, other: Captured, training: bool) -> None:
        self._captured, self._training = one, training
        self._nodes = list(one.graph.nodes)
        self._graph = Graph()
        self._new: dict[Node, Node] = {}
        self._at = {node: place for place, node in enumerate(self._nodes)}
        placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._x = placeholders[-1]
        self._leaves = dict(zip(placeholders, (*one.params, *one.buffers), strict=False))
        self._input = self._x  # its copy, once it is made
        found = twins(one, other)
        if found is None:
            raise CannotCompactError(one.name, ": its operations depend on the batch size")
        self._twins = found
        self._resizing = Resizing(self._graph, self._new, self._size, self._device, self._varies)

    def done(self) -> Traced:
        """The graph for any batch size."""
        kept = {node for node in self._nodes if self._stays_in_place(node)}
        shared = {memory_of(each) for node in kept for each in changed_by(node)}
        opaque, with_units = set(), set()
        for node, twin in self._twins.items():
            if node.target is torch._C._set_grad_enabled and not self._training:
                continue
            copy = self._new[node] = self._graph.node_copy(node, lambda each: self._new[each])
            if node is self._x:
                self._input = copy
            self._resizing.resize(copy, node, twin)
            if node.target in _COPIES:
                copy.target = _aten.clone.default
            if node is self._x and memory_of(node) in shared:  # never change the caller's tensor
                copy = self._new[node] = self._graph.call_function(_aten.clone.default, (copy,))
                copy.meta = dict(node.meta)
            if changed_by(node) and node not in kept:
                copy.target = _functional(node)
                self._new[changed_by(node)[0]] = copy
            if memory_of(node) in shared:
                opaque.add(copy)
            if node not in self._leaves and _has_units(node, twin):
                with_units |= {copy, self._new[node]}
        free_views(self._graph)  # attention's strides depend on its shapes, and so on how many units are left
        found = self._captured._replace(graph=self._graph)
        return Traced(found, frozenset(with_units | {self._input}), frozenset(opaque - {self._input}))

    def _stays_in_place(self, node: Node) -> bool:
        """Whether an in-place operation cannot be replaced by one that returns a new tensor."""
        changed = changed_by(node)
        if not changed:
            return False
        state = {memory_of(leaf): name for leaf, name in self._leaves.items()}
        for each in changed:
            name = state.get(memory_of(each))
            if name in self._captured.params:
                raise cannot(self._captured, node, f"changes the parameter {name}")
            if name is not None:
                return True
        if len(changed) != 1 or changed[0] is not node.args[0] or _functional(node) is None:
            return True
        (target,) = changed
        return is_seen_elsewhere(node, target, self._at)

    def _size(self) -> Node:
        return self._graph.call_function(_aten.sym_size.int, (self._input, 0))

    def _device(self) -> Node:
        return self._graph.call_function(getattr, (self._input, "device"))  # instead of the trace's

    def _varies(self, node: Node) -> UserError:
        return cannot(self._captured, node, "depends on the batch size")


def _functional(node: Node) -> Any:
    """The functional operation for an in-place one (``relu_``, ``__iand__``), or None."""
    name = str(node.target).split(".")[1]
    name = name.replace("__i", "__", 1) if name.startswith("__i") else name.removesuffix("_")
    name = "normal_functional" if name == "normal" else name
    overload = getattr(getattr(_aten, name, None), str(node.target).split(".")[2], None)
    return overload if isinstance(overload, OpOverload) and not overload._schema.is_mutable else None


def _has_units(node: Node, twin: Node) -> bool:
    ours, theirs = node.meta.get("val"), twin.meta.get("val")
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or min(ours.ndim, theirs.ndim) < 2:
        return False
    return (ours.shape[0], theirs.shape[0]) == (TRACED_BATCH, OTHER_BATCH) and ours.shape[1:] == theirs.shape[1:]
