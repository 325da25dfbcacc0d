"""What is known of each unit of a network: whether it varies with the input, and whether an output depends on it.

A unit is one position along dimension 1 of a value: a feature, or a channel with all its places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from lthfunc.errors import UserError
from lthfunc.sparse.capture import TRACED_BATCH, Captured, line_of, operation_of
from lthfunc.trees.types import Buffers, Masks, Params

_aten = torch.ops.aten


def args_of(node: Node) -> tuple[Any, ...]:
    """An operation's arguments, whatever they are."""
    return node.args


#: A unit is zero, and stays so however the network is trained; does not depend on the input; does.
ZERO, CONSTANT, VARIES = 0, 1, 2


@dataclass(eq=False)
class Facts:
    """fates: of each value's units, int8. needed: bool, whether an output depends on them.

    training: only what training can never bring back may go, else whatever is constant. values: of each node for some
    input, without the batch; for a network in training one mapping for each mode. params: with the buffers, some of
    which may be weights that stay as they are (frozen).
    """

    captured: Captured
    params: Params
    masks: Masks
    training: bool
    values: list[dict[Node, Tensor]]
    leaves: dict[Node, str]
    frozen: frozenset[str]
    fates: dict[Node, Tensor] = field(default_factory=dict)
    needed: dict[Node, Tensor] = field(default_factory=dict)

    def has_units(self, node: Any) -> bool:
        """Whether an argument is a value with a batch and units."""
        if not isinstance(node, Node) or node in self.leaves:
            return False
        value = node.meta.get("val")
        return isinstance(value, Tensor) and value.ndim >= 2

    def units(self, node: Node) -> int:
        """How many there are."""
        return int(node.meta["val"].shape[1])

    def live(self, node: Node) -> Tensor:
        """bool (units,): those that may not go because of what they are."""
        return self.fates[node] > (ZERO if self.training else CONSTANT)

    def wanted_units(self, node: Node) -> Tensor:
        """bool (units,): those to compute."""
        return self.live(node) & self.needed[node]

    def wanted(self, node: Node) -> Tensor:
        """int64: the units to compute, at least one, so that no value is empty."""
        found = self.wanted_units(node).nonzero().flatten()
        return found if len(found) else torch.zeros(1, dtype=torch.int64)

    def is_constant(self, node: Node, test: Callable[[Tensor], Tensor]) -> Tensor:
        """bool (units,): where all places pass a test, in each mode."""
        passed = [test(values[node]).reshape(self.units(node), -1).all(1) for values in self.values]
        return torch.stack(passed).all(0)

    def sole(self, argument: Any) -> bool:
        """Whether a parameter is read by one operation alone, so that it may be cut."""
        return isinstance(argument, Node) and argument in self.leaves and len(argument.users) == 1

    def connected(self, weight: Node) -> Tensor:
        """bool (outputs, inputs of a group): where a layer has any weight left."""
        name = self.leaves[weight]
        mask = self.masks.get(name, torch.ones_like(self.params[name], dtype=torch.bool))
        return mask.reshape(*mask.shape[:2], -1).any(2)


#: Fates of an operation's units; for each argument with units, those that its needed ones are computed from.
Fates = Callable[[Node, Facts], Tensor]
Needs = Callable[[Node, Tensor, Facts], list[tuple[Node, Tensor]]]


class Flow(NamedTuple):
    """How an operation hands facts on."""

    fates: Fates
    needs: Needs


def values_of(captured: Captured, params: Params, buffers: Buffers, shape: tuple[int, ...]) -> dict[Node, Tensor]:
    """Every value of the graph for an input of zeros, in float64, without the batch. Constant units have it always."""
    trees = [*((params, name) for name in captured.params), *((buffers, name) for name in captured.buffers)]
    given = [tree[name].detach().cpu().clone() for tree, name in trees]  # a network in training changes its buffers
    given = [each.double() if each.is_floating_point() else each for each in given]
    found: dict[Node, Tensor] = {}

    class Noting(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor) and result.ndim >= 2:
                found[n] = result[0].clone()  # of one example, so that the others' memory is free again
            return result

    with torch.no_grad():
        kind = [node for node in captured.graph.nodes if node.op == "placeholder"][-1].meta["val"].dtype
        inputs = torch.zeros(TRACED_BATCH, *shape, dtype=torch.float64 if kind.is_floating_point else kind)
        Noting(GraphModule({}, captured.graph)).run(*given, inputs)
    return found


def without_changes(captured: Captured) -> Captured:
    """The same with every operation that changes its argument (``relu_``) as one that gives a new value.

    Counters of steps, which are buffers, still change.
    """
    graph = Graph()
    new: dict[Node, Node] = {}
    placeholders = [node for node in captured.graph.nodes if node.op == "placeholder"]
    state = set(placeholders[:-1])
    for node in captured.graph.nodes:
        copy = new[node] = graph.node_copy(node, new.__getitem__)
        name, _, overload = str(node.target).removeprefix("aten.").partition(".")
        if node.op == "call_function" and name.endswith("_") and overload and args_of(node)[0] not in state:
            copy.target = getattr(getattr(_aten, name.removesuffix("_")), overload)
            new[args_of(node)[0]] = copy
    return captured._replace(graph=graph)


def cannot(captured: Captured, node: Node, why: str) -> UserError:
    """What is told of an operation that stands in the way."""
    return UserError(f"compact: {captured.name} cannot be compacted: {operation_of(node)} {why}{line_of(node)}")
