"""The graph that compaction works on: for any batch size, and functional wherever possible."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from lthfunc.errors import UserError
from lthfunc.sparse.capture import TRACED_BATCH, CannotTraceError, Captured, captured, line_of, operation_of
from lthfunc.tracebacks import first_line
from lthfunc.training.engines.aliases import changed_by, is_seen_elsewhere, memory_of
from lthfunc.trees.model import Model
from lthfunc.trees.ops import same_bits
from lthfunc.trees.types import Params

_aten = torch.ops.aten
#: Batch size of the second trace: numbers that differ between both traces depend on the batch size.
_OTHER = 23
_COPIES = (_aten.lift_fresh_copy.default, _aten.lift_fresh.default)
_DEVICE = torch.device("cpu")


class Traced(NamedTuple):
    """A module's graph.

    with_units: nodes whose values have the batch along dimension 0 and units along dimension 1. opaque: nodes that
    share memory with a tensor that is changed in place while others still read it; they stay as they are.
    """

    captured: Captured
    with_units: frozenset[Node]
    opaque: frozenset[Node]


def cannot(captured: Captured, node: Node, why: str) -> UserError:
    """The error for an operation that cannot be compacted."""
    return UserError(f"compact: {captured.name} cannot be compacted: {operation_of(node)} {why}{line_of(node)}")


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
            for examples in (TRACED_BATCH, _OTHER)
        )
    except CannotTraceError as error:
        raise UserError(f"compact: {model.name} cannot be compacted{error.why}") from error
    return _Tracing(one, other, training).done()


class _Tracing:
    """Builds a new graph from two traces, node by node."""

    def __init__(self, one: Captured, other: Captured, training: bool) -> None:
        self._captured, self._training = one, training
        self._nodes, self._twins = list(one.graph.nodes), list(other.graph.nodes)
        self._graph = Graph()
        self._new: dict[Node, Node] = {}
        self._at = {node: place for place, node in enumerate(self._nodes)}
        placeholders = [node for node in self._nodes if node.op == "placeholder"]
        self._x = placeholders[-1]
        self._leaves = dict(zip(placeholders, (*one.params, *one.buffers), strict=False))
        self._input = self._x  # its copy, once it is made
        if len(self._nodes) != len(self._twins) or not _same_constants(one, other):
            raise UserError(f"compact: {one.name} cannot be compacted: its operations depend on the batch size")

    def done(self) -> Traced:
        """The graph for any batch size."""
        kept = {node for node in self._nodes if self._stays_in_place(node)}
        shared = {memory_of(each) for node in kept for each in changed_by(node)}
        opaque, with_units = set(), set()
        for node, twin in zip(self._nodes, self._twins, strict=True):
            if (node.op, str(node.target)) != (twin.op, str(twin.target)):
                raise self._varies(node)
            if node.target is torch._C._set_grad_enabled and not self._training:
                continue
            copy = self._new[node] = self._graph.node_copy(node, lambda each: self._new[each])
            if node is self._x:
                self._input = copy
            self._resize(copy, node, twin)
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

    def _resize(self, copy: Node, node: Node, twin: Node) -> None:
        """Replace numbers that depend on the batch size by nodes that compute them."""
        if copy.op != "call_function":
            return
        with self._graph.inserting_before(copy):
            given = self._sized(node, (node.args, node.kwargs), (twin.args, twin.kwargs))
        copy.args, copy.kwargs = given

    def _sized(self, node: Node, ours: Any, theirs: Any) -> Any:
        if isinstance(ours, Node):
            return self._new[ours]
        if isinstance(ours, (list, tuple)) and len(ours) == len(theirs):
            return type(ours)(self._sized(node, *pair) for pair in zip(ours, theirs, strict=True))
        if isinstance(ours, dict) and ours.keys() == theirs.keys():
            return {key: self._sized(node, value, theirs[key]) for key, value in ours.items()}
        if isinstance(ours, slice) and isinstance(theirs, slice):
            parts = ((ours.start, theirs.start), (ours.stop, theirs.stop), (ours.step, theirs.step))
            return slice(*(self._sized(node, *pair) for pair in parts))
        if ours is theirs or ours == theirs or (ours != ours and theirs != theirs):
            if not isinstance(ours, torch.device) or ours != _DEVICE:
                return ours
            return self._graph.call_function(getattr, (self._input, "device"))  # instead of the trace's
        if type(ours) is not int or type(theirs) is not int:
            raise self._varies(node)
        times, rest = divmod(theirs - ours, _OTHER - TRACED_BATCH)
        if rest == 0:
            plus = ours - times * TRACED_BATCH
            size: Node = self._size()
            if times != 1:
                size = self._graph.call_function(operator.mul, (size, times))
            return self._graph.call_function(operator.add, (size, plus)) if plus else size
        by = next((by for by in range(2, TRACED_BATCH + 1) if (TRACED_BATCH // by, _OTHER // by) == (ours, theirs)), 0)
        if not by:
            raise self._varies(node)
        return self._graph.call_function(operator.floordiv, (self._size(), by))

    def _size(self) -> Node:
        return self._graph.call_function(_aten.sym_size.int, (self._input, 0))

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
    return (ours.shape[0], theirs.shape[0]) == (TRACED_BATCH, _OTHER) and ours.shape[1:] == theirs.shape[1:]


def _same_constants(one: Captured, other: Captured) -> bool:
    both = (*one.constants.values(), *other.constants.values())
    return all(isinstance(each, Tensor) for each in both) and same_bits(one.constants, other.constants)
