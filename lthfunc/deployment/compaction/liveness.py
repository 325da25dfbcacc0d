"""What is known of each unit of a network: whether it varies with the input, and whether an output depends on it.

A unit is one index along dimension 1 of a value: a feature, or a channel with all its positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map

from lthfunc.deployment.compaction.tracing import Traced, fails
from lthfunc.errors import UserError
from lthfunc.sparse.capture import Captured
from lthfunc.trees.types import Buffers, Masks, Params


def args_of(node: Node) -> tuple[Any, ...]:
    """An operation's arguments, of any type."""
    return node.args


#: A unit is zero and stays so in any training; it doesn't depend on the input; it does.
ZERO, CONSTANT, VARIES = 0, 1, 2
#: Batch size of the evaluation: batch normalisation in training refuses a single example.
_EXAMPLES = 2


@dataclass(eq=False)
class Liveness:
    """constancy: of each value's units, int8. needed: bool, whether an output depends on them.

    with_units, opaque: as `Traced` has them. training: only what training can never bring back may go, else whatever is
    constant. values: of each node for some input, without the batch; for a network in training one mapping for each
    mode. params: with the buffers, some of which may be weights that stay as they are (frozen).
    """

    captured: Captured
    with_units: frozenset[Node]
    opaque: frozenset[Node]
    params: Params
    masks: Masks
    training: bool
    values: list[dict[Node, Tensor]]
    leaves: dict[Node, str]
    frozen: frozenset[str]
    constancy: dict[Node, Tensor] = field(default_factory=dict)
    needed: dict[Node, Tensor] = field(default_factory=dict)

    def has_units(self, node: Any) -> bool:
        """Whether an argument is a value with a batch dimension and units."""
        return isinstance(node, Node) and node in self.with_units

    def units(self, node: Node) -> int:
        """The number of units of a value."""
        return int(node.meta["val"].shape[1])

    def live(self, node: Node) -> Tensor:
        """bool (units,): those whose values vary too much to be removed."""
        return self.constancy[node] > (ZERO if self.training else CONSTANT)

    def wanted_units(self, node: Node) -> Tensor:
        """bool (units,): those to compute."""
        return self.live(node) & self.needed[node]

    def wanted(self, node: Node) -> Tensor:
        """int64: the units to compute, at least one if there are any, so that no other value is empty."""
        found = self.wanted_units(node).nonzero().flatten()
        return found if len(found) else torch.zeros(min(1, self.units(node)), dtype=torch.int64)

    def is_constant(self, node: Node, test: Callable[[Tensor], Tensor]) -> Tensor:
        """bool (units,): where all positions pass a test, in each mode."""
        passed = [test(values[node]).reshape(self.units(node), -1).all(1) for values in self.values]
        return torch.stack(passed).all(0)

    def is_sole(self, argument: Any) -> bool:
        """Whether only one operation reads a parameter, so that it may be cut."""
        return isinstance(argument, Node) and argument in self.leaves and len(argument.users) == 1

    def connected(self, weight: Node) -> Tensor:
        """bool (outputs, inputs of a group): where any weight of a layer survives."""
        name = self.leaves[weight]
        mask = self.masks.get(name, torch.ones_like(self.params[name], dtype=torch.bool))
        return mask.reshape(*mask.shape[:2], -1).any(2)


@contextmanager
def naming_errors(facts: Liveness, node: Node) -> Iterator[None]:
    """Raise any error as a UserError that names the operation."""
    try:
        yield
    except Exception as error:
        raise fails(facts.captured, node, error) from error


#: Forward of an operation's units; for each argument with units, those that its needed ones are computed from.
Forward = Callable[[Node, Liveness], Tensor]
Backward = Callable[[Node, Tensor, Liveness], list[tuple[Node, Tensor]]]


class Transfer(NamedTuple):
    """Transfer functions of an operation: constancy forwards, needs backwards."""

    constancy: Forward
    needs: Backward


def values_of(traced: Traced, params: Params, buffers: Buffers, shape: tuple[int, ...]) -> dict[Node, Tensor]:
    """Every value with units for an input of zeros, in float64, without the batch; constant units always have it.

    In the network's own dtypes where an operation takes no other. Raises UserError for an operation that fails.
    """
    try:
        return _evaluated(traced, params, buffers, shape, wide=True)
    except UserError:
        return _evaluated(traced, params, buffers, shape, wide=False)


def _evaluated(
    traced: Traced, params: Params, buffers: Buffers, shape: tuple[int, ...], *, wide: bool
) -> dict[Node, Tensor]:
    captured = traced.captured

    def typed(value: Any) -> Any:
        """Widen floats; tensors made inside the graph have the dtype of the trace."""
        return value.double() if wide and isinstance(value, Tensor) and value.is_floating_point() else value

    trees = [*((params, name) for name in captured.params), *((buffers, name) for name in captured.buffers)]
    # Copies: a network in training changes its buffers.
    given = [typed(tree[name].detach().cpu().clone()) for tree, name in trees]
    found: dict[Node, Tensor] = {}

    class Noting(Interpreter):
        def run_node(self, n: Node) -> Any:
            try:
                result = tree_map(typed, super().run_node(n))
            except Exception as error:
                raise fails(captured, n, error) from error
            if n in traced.with_units:
                found[n] = result[0].clone()  # of one example, to free the others' memory
            return result

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        kind = captured.placeholders[-1].meta["val"].dtype
        constants = {name: value.detach().cpu() for name, value in captured.constants.items()}
        noting = Noting(GraphModule(constants, captured.graph))
        noting.extra_traceback = False  # which would be added to the message
        noting.run(*given, typed(torch.zeros(_EXAMPLES, *shape, dtype=kind)))
    return found
