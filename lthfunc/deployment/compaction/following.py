"""Labels followed through a network's graph: which rows and columns of which parameters belong to one unit.

Each output of a layer has a label. Operations that move values move labels along; those that combine values unite the
labels of what meets. So a class is what has to be removed together: an attention head with its rows and columns, a
dimension of a residual stream with everything that writes or reads it. Beside the labels goes what compaction has to
know of each number: its value for an input of zeros, and whether it varies with the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map

from lthfunc.deployment.compaction.classes import FIXED, NEUTRAL, Classes, differ
from lthfunc.deployment.compaction.tracing import Traced, fails
from lthfunc.trees.ops import apply_masks, to_device
from lthfunc.trees.types import Buffers, Masks, Params

#: Elements of a parameter or constant up to which each gets a label of its own.
_MOST_LABELS = 1 << 20


class Followed(NamedTuple):
    """Of a value for one example: its labels, whether it varies with the input, and what it is for zeros.

    leaf: the name of the parameter, buffer or constant that it is. As such it has no labels yet: as a layer's weight it
    has some for rows and for columns, elsewhere one for each element.
    """

    labels: Tensor
    varies: Tensor
    value: Tensor
    leaf: str = ""


class Whole(NamedTuple):
    """A value of which the units along an axis all have to stay: something of that size without labels meets it."""

    labels: Tensor
    axis: int


class Following:
    """What is known after the graph has been followed.

    axes: of each layer's weight, the labels of its rows and columns. elements: labels of the elements of other leaves.
    labels: of each node's value. read: labels of numbers that something depends on. heads: labels of attention's
    heads. added: labels of sums of two values.
    """

    def __init__(self, traced: Traced, params: Params, buffers: Buffers, masks: Masks) -> None:
        self.traced, self.masks = traced, masks
        self.leaves: dict[str, Tensor] = {**params, **buffers}
        self.classes = Classes()
        self.axes: dict[str, tuple[Tensor, Tensor]] = {}
        self.elements: dict[str, Tensor] = {}
        self.labels: dict[Node, Tensor] = {}
        self.values: dict[Node, Followed] = {}
        self.read: list[Tensor] = []
        self.heads: list[Tensor] = []
        self.added: list[Tensor] = []
        self.whole: list[Whole] = []

    def of(self, seen: Followed) -> Tensor:
        """A value's labels; those of a leaf are one for each element."""
        if not seen.leaf:
            return seen.labels
        if seen.leaf in self.axes:  # also a layer's weight
            for labels in self.axes[seen.leaf]:
                self.classes.fix(labels)
        if seen.leaf not in self.elements:
            count = seen.value.numel()
            many = count > _MOST_LABELS or seen.leaf in self.masks or count == 1
            self.elements[seen.leaf] = (
                torch.full(seen.value.shape, NEUTRAL if count == 1 else FIXED)
                if many
                else self.classes.fresh(count).view(seen.value.shape)
            )
        return self.elements[seen.leaf]

    def weight_axes(self, seen: Followed) -> tuple[Tensor, Tensor]:
        """Labels of the rows and columns of a layer's weight."""
        if seen.leaf not in self.axes:
            rows, columns = seen.value.shape[:2]
            self.axes[seen.leaf] = self.classes.fresh(rows), self.classes.fresh(columns)
            if seen.leaf in self.elements:  # something else reads it as well
                self.of(seen)
        return self.axes[seen.leaf]

    def connected(self, seen: Followed) -> Tensor:
        """bool (rows, columns): where any weight of a layer survives."""
        mask = self.masks.get(seen.leaf)
        if mask is None:
            return torch.ones(seen.value.shape[:2], dtype=torch.bool)
        return mask.reshape(*mask.shape[:2], -1).any(2)

    def fix(self, *given: Any) -> None:
        """Nothing of these values can be removed."""
        for seen in followed_in(given):
            self.classes.fix(self.of(seen))


def followed_in(given: Any) -> Iterator[Followed]:
    """The values among an operation's arguments."""
    return (each for each in tree_leaves(given, is_leaf=_is_followed) if isinstance(each, Followed))


def on_values(given: Any, pick: Callable[[Followed], Tensor]) -> Any:
    """Arguments with tensors for values."""
    return tree_map(lambda each: pick(each) if isinstance(each, Followed) else each, given, is_leaf=_is_followed)


def _is_followed(value: Any) -> bool:
    return isinstance(value, Followed)


#: What an operation makes of labels: (what is known, node, arguments, its value) -> (labels, varies) of each output.
Rule = Callable[[Following, Node, Any, Any], Any]


def follow(
    traced: Traced, params: Params, buffers: Buffers, masks: Masks, shape: tuple[int, ...],
    rule_of: Callable[[Node], Rule | None],
) -> Following:  # fmt: skip
    """Follow labels from the input to the outputs. Raises UserError for an operation that fails.

    params, buffers, masks: of the network. shape: of one input. rule_of: gives an operation's rule, or None.
    """
    params, buffers, masks = to_device((apply_masks(params, masks), buffers, masks), "cpu")
    known = Following(traced, params, buffers, masks)
    captured = traced.captured
    constants = {name: value.detach().cpu() for name, value in captured.constants.items()}
    known.leaves |= constants
    leaves = [*((params, name) for name in captured.params), *((buffers, name) for name in captured.buffers)]
    none = torch.zeros(0, dtype=torch.int64)

    def leaf(name: str, value: Tensor) -> Followed:
        value = _wide(value.detach())
        return Followed(none, torch.zeros(value.shape, dtype=torch.bool), value, name)

    class Labelling(Interpreter):
        def run_node(self, n: Node) -> Any:
            try:
                if n.op == "get_attr":
                    return leaf(str(n.target), constants[str(n.target)])
                result = _followed(known, n, *self.fetch_args_kwargs_from_env(n), rule_of) if n.op in _CALLS else (
                    super().run_node(n)
                )  # fmt: skip
            except Exception as error:
                raise fails(captured, n, error) from error
            if isinstance(result, Followed) and not result.leaf:
                known.values[n] = result
            return result

    kind = captured.placeholders[-1].meta["val"].dtype
    x = _wide(torch.zeros(1, *shape, dtype=kind))
    given = [leaf(name, tree[name]) for tree, name in leaves]
    given.append(Followed(torch.full(x.shape, FIXED), torch.ones(x.shape, dtype=torch.bool), x))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        run = Labelling(GraphModule(constants, captured.graph))
        run.extra_traceback = False
        outputs = run.run(*given)
    known.fix(outputs)
    _fix_what_cannot_shrink(known)
    known.labels = {node: known.classes.roots(seen.labels) for node, seen in known.values.items()}
    return known


_CALLS = ("call_function",)


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _followed(known: Following, node: Node, args: Any, kwargs: Any, rule_of: Callable[[Node], Rule | None]) -> Any:
    target: Any = node.target
    value = tree_map(_wide, target(*on_values(args, _value), **on_values(kwargs, _value)))
    read = list(followed_in((args, kwargs)))
    if not any(isinstance(each, Tensor) for each in tree_leaves(value)):
        return value
    if _is_followed(args[0] if args else None) or not isinstance(value, Tensor) or read:
        rule = None if node in known.traced.opaque else rule_of(node)
        if rule is not None:
            return rule(known, node, (args, kwargs), value)
    if not read:  # a tensor made inside the graph
        return Followed(torch.full(value.shape, NEUTRAL), torch.zeros(value.shape, dtype=torch.bool), value)
    known.fix(args, kwargs)
    return tree_map(_fixed, value)


def _value(seen: Followed) -> Tensor:
    return seen.value


def _fixed(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return Followed(torch.full(value.shape, FIXED), torch.ones(value.shape, dtype=torch.bool), value)


def _fix_what_cannot_shrink(known: Following) -> None:
    """Fix classes whose removal would leave no tensor: whole values, and sets of elements that are no whole slices."""
    classes = known.classes
    for labels, axis in known.whole:
        each = classes.roots(labels).movedim(axis, 0).reshape(labels.shape[axis], -1)
        classes.fix(each[:, 0][(each == each[:, :1]).all(1)])
    checked = [*(seen.labels for seen in known.values.values()), *known.elements.values()]
    for labels in checked:
        roots = classes.roots(labels)
        axes = [axis for axis in range(roots.ndim) if differ(roots, axis)]
        if len(axes) == 1:
            continue
        found = [each for each in torch.unique(roots).tolist() if each > FIXED]
        for root in found:
            if not axes or kept_along(roots != root) is None:
                classes.fix(torch.tensor(root))


def kept_along(alive: Tensor) -> list[Tensor] | None:
    """For each axis the int64 indices that remain; None where the remaining elements are no tensor."""
    found = []
    whole = torch.ones_like(alive)
    for axis in range(alive.ndim):
        there = alive.movedim(axis, 0).reshape(alive.shape[axis], -1).any(1)
        whole &= there.view(-1, *(1,) * (alive.ndim - 1 - axis))
        found.append(there.nonzero().flatten())
    return found if torch.equal(whole, alive) else None


def solid(labels: Tensor) -> Tensor:
    """Labels where what is no unit has to stay."""
    return torch.where(labels == NEUTRAL, FIXED, labels)


def unknown(known: Following, given: Any, value: Tensor) -> Followed:
    """What becomes of an operation without a rule: nothing that it reads or gives can be removed."""
    known.fix(given)
    return Followed(torch.full(value.shape, FIXED), torch.ones(value.shape, dtype=torch.bool), value)
