"""Einstein sums as what they are: linear layers, products of two values, and products and sums place by place."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import torch
from torch.fx import Graph, Node

from lthfunc.sparse.linear_layers import turned_from

_aten = torch.ops.aten


def name_einsums(graph: Graph, leaves: Container[Node]) -> None:
    """Have each einsum of a graph be the operations that it is, unless an operand has a letter twice.

    leaves: nodes of parameters and buffers. A matrix of these is a linear layer's weight, whichever way it lies.
    """
    for node in graph.nodes:
        if node.target is not _aten.einsum.default:
            continue
        equation, nodes = node.args
        given = _operands(equation, nodes)
        if given is None or all(each in leaves for each in nodes):
            continue
        with graph.inserting_before(node):
            found = _Rewriting(node, leaves).product(*given)
        node.replace_all_uses_with(found)
        graph.erase_node(node)


class _Operand(NamedTuple):
    """letters: of the node's dimensions, one each."""

    node: Node
    letters: str


def _operands(equation: str, nodes: Sequence[Node]) -> tuple[list[_Operand], str] | None:
    """(the operands, the result's letters); dimensions of an ellipsis have letters of their own. None where an operand
    has a letter twice, or a letter stands for several sizes."""
    given, arrow, result = equation.replace(" ", "").partition("->")
    operands, sizes, most = list[_Operand](), dict[str, int](), 0
    for term, node in zip(given.split(","), nodes, strict=True):
        shape = node.meta["val"].shape
        count = len(shape) - len(term.replace("...", ""))
        most = max(most, count)
        letters = term.replace("...", _ellipsis(count))
        alike = all(sizes.setdefault(letter, size) == size for letter, size in zip(letters, shape, strict=True))
        if not alike or len(set(letters)) < len(letters):
            return None
        operands.append(_Operand(node, letters))
    if not arrow:
        result = "..." + "".join(sorted(each for each in set(given) - {*",."} if given.count(each) == 1))
    return operands, result.replace("...", _ellipsis(most))


def _ellipsis(count: int) -> str:
    """Letters of so many dimensions, of which the last are those of an ellipsis of fewer."""
    return "".join(chr(ord("z") + place) for place in range(count, 0, -1))


class _Rewriting:
    """Writes operations before an einsum. leaves: nodes of parameters and buffers."""

    def __init__(self, einsum: Node, leaves: Container[Node]) -> None:
        self._graph, self._stack_trace, self._leaves = einsum.graph, einsum.meta.get("stack_trace"), leaves

    def product(self, operands: list[_Operand], result: str) -> Node:
        """Of all operands, one after the other."""
        first, *others = map(self._untied, operands)
        while others:
            other = others.pop(0)
            needed = {*result, *(letter for each in others for letter in each.letters)}
            first = self._of_two(self._summed(first, {*needed, *other.letters}), other, needed)
        return self._in_order(self._summed(first, {*result}), result).node

    def _untied(self, x: _Operand) -> _Operand:
        """A leaf as it lies, where the operand is its transpose."""
        leaf = turned_from(x.node)
        return x if leaf is None or leaf not in self._leaves else _Operand(leaf, x.letters[::-1])

    def _of_two(self, x: _Operand, y: _Operand, needed: set[str]) -> _Operand:
        """The product of both, summed over the letters of both that nothing needs."""
        y = self._summed(y, {*needed, *x.letters})
        if x.node in self._leaves:
            x, y = y, x
        both = [each for each in x.letters if each in y.letters]
        summed, kept = [each for each in both if each not in needed], [each for each in both if each in needed]
        left, right = ([each for each in letters if each not in both] for letters in (x.letters, y.letters))
        if left and len(summed) == len(right) == 1 and not kept:
            x = self._in_order(x, [*left, *summed])
            lies = y.letters == right[0] + summed[0]
            return self._call(_aten.linear.default if lies else _aten.matmul.default, [*left, *right], x.node, y.node)
        if left and right and summed:
            return self._matmul(x, y, kept, left, right, summed)
        order = [*kept, *left, *right, *summed]
        found = self._call(_aten.mul.Tensor, order, *(self._spread(each, order) for each in (x, y)))
        return self._summed(found, needed)

    def _matmul(
        self, x: _Operand, y: _Operand, kept: list[str], left: list[str], right: list[str], summed: list[str]
    ) -> _Operand:  # fmt: skip
        """Of matrices whose rows and columns may be several letters. kept: letters of the leading dimensions."""
        sizes = dict(zip(x.letters + y.letters, [*x.node.meta["val"].shape, *y.node.meta["val"].shape], strict=True))

        def merged(operand: _Operand, rows: list[str], columns: list[str]) -> Node:
            found = self._in_order(operand, [*kept, *rows, *columns]).node
            if len(rows) == len(columns) == 1:
                return found
            shape = [[sizes[each]] for each in kept] + [[sizes[each] for each in side] for side in (rows, columns)]
            return self._node(_aten.reshape.default, found, [math.prod(each) for each in shape])

        product = self._node(_aten.matmul.default, merged(x, left, summed), merged(y, summed, right))
        letters = [*kept, *left, *right]
        if len(left) == len(right) == 1:
            return _Operand(product, "".join(letters))
        return self._call(_aten.reshape.default, letters, product, [sizes[each] for each in letters])

    def _spread(self, x: _Operand, order: list[str]) -> Node:
        """With its dimensions in an order, and one of size one in the place of each that it lacks."""
        node = self._in_order(x, [each for each in order if each in x.letters]).node
        for place, letter in enumerate(order):
            if letter not in x.letters:
                node = self._node(_aten.unsqueeze.default, node, place)
        return node

    def _in_order(self, x: _Operand, order: Sequence[str]) -> _Operand:
        places = [x.letters.index(each) for each in order]
        return x if places == sorted(places) else self._call(_aten.permute.default, order, x.node, places)

    def _summed(self, x: _Operand, needed: set[str]) -> _Operand:
        """Over the letters that nothing needs."""
        dims = [place for place, letter in enumerate(x.letters) if letter not in needed]
        kept = [each for each in x.letters if each in needed]
        return self._call(_aten.sum.dim_IntList, kept, x.node, dims) if dims else x

    def _call(self, target: Any, letters: Sequence[str], *args: Any) -> _Operand:
        return _Operand(self._node(target, *args), "".join(letters))

    def _node(self, target: Any, *args: Any) -> Node:
        node = self._graph.call_function(target, args)
        values = (each.meta["val"] if isinstance(each, Node) else each for each in args)
        node.meta.update(val=target(*values), stack_trace=self._stack_trace)
        return node
