"""The graph of one token of a sequence, found by comparing a network's graphs of one token and of a whole sequence.

A dimension that is longer in the graph of the whole sequence is that of places. What depends on no token is a table
with a row for each place. Operations that compute each token by itself stay as they are; attention reads the tokens
before it, or all, and recurrent layers the states that they kept; anything else that could mix tokens is refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from lthfunc.errors import UserError
from lthfunc.sparse.capture import Captured, captured_tokens, operation_of
from lthfunc.sparse.interpretation import described
from lthfunc.sparse.kernels.instructions import POINTWISE
from lthfunc.sparse.known_values import Known, dropped_of, leaves_of
from lthfunc.sparse.learned_tables import MOVING, Learned, numbered
from lthfunc.sparse.lowerings.decoding import ONE_STEP, causal_attention, row_of_place
from lthfunc.sparse.lowerings.interface import argument
from lthfunc.sparse.mask_terms import Term, Terms, is_of_pairs, terms_of
from lthfunc.sparse.undropped import undropped
from lthfunc.trees.model import Model
from lthfunc.trees.types import Buffers, Masks, Params

#: Operations that compute each number by itself, and those that give numbers other places: where the dimension of
#: places remains one, they mix no tokens.
_EACH = MOVING | {
    *POINTWISE, "selu", "celu", "clip", "clamp_min", "clamp_max", "maximum", "minimum", "add", "sub", "rsub", "mul",
    "div", "neg", "dropout", "embedding", "masked_fill", "where", "bitwise_not", "logical_not", "bitwise_and",
    "logical_and", "__and__", "bitwise_or", "logical_or", "__or__", "to", "_to_copy", "type_as", "zeros_like",
    "ones_like", "full_like", "repeat", "expand_as",
}  # fmt: skip
#: Operations over one dimension of their first argument: the last, or that which they are given.
_OVER_LAST, _OVER_GIVEN = frozenset({"linear", "layer_norm", "rms_norm"}), frozenset({"softmax", "log_softmax"})
_ATTENTION = "scaled_dot_product_attention"


class StandIns(NamedTuple):
    """What stands in the graph of one token for operations that read others, or its place: for attention, for the row
    of a table, and for recurrent layers, if they may be there.

    full: for attention to all tokens, if it may be there. learned_row: for the row of a parameter, by its numbers'
    places in it: the network is then one that is trained. lanes: whether masks may depend on tokens, and numbers be
    dropped. drops: whether they are. traced: gives the graph of sequences of a length.
    """

    attention: Callable[..., Any]
    row: Callable[..., Any]
    recurrent: Mapping[Any, Callable[..., Any]]
    full: Callable[..., Any] | None = None
    learned_row: Callable[..., Any] | None = None
    lanes: bool = False
    drops: bool = True
    traced: Callable[..., Captured] = captured_tokens


#: Of tokens that are read one after the other.
DECODING = StandIns(causal_attention, row_of_place, ONE_STEP)


class OneToken(NamedTuple):
    """captured: the graph of one token, whose constants are tables with a row for each place. params: the module's, and
    embeddings with their pruned weights. read: the names of buffers that tables were made of."""

    captured: Captured
    params: Params
    read: frozenset[str]


def one_token(
    model: Model, params: Params, buffers: Buffers, masks: Masks, length: int, stand_ins: StandIns = DECODING
) -> OneToken:  # fmt: skip
    """The graph of one token of sequences of up to `length`, at least 2. params: masked.

    Raises UserError, with the operation and its line in the network, where tokens are mixed otherwise than by what has
    a stand-in.
    """
    training = stand_ins.learned_row is not None
    one, whole = (stand_ins.traced(model, count, training=training) for count in (1, length))
    if not stand_ins.drops:
        one, whole = undropped(one), undropped(whole)
    if [(each.op, each.target) for each in one.graph.nodes] != [(each.op, each.target) for each in whole.graph.nodes]:
        raise UserError(f"decoding_program: {model.name} does other things with one token than with {length}")
    values = numbered(params) if training else params
    known = Known(one, values, buffers), Known(whole, values, buffers)
    return _Rewriting(*known, params, length, masks, stand_ins).result()


class _Rewriting:
    """one, whole: the graphs of one token and of `length`. masks: of the network's parameters."""

    def __init__(
        self, one: Known, whole: Known, params: Params, length: int, masks: Masks, stand_ins: StandIns
    ) -> None:
        self._one, self._whole, self._length = one, whole, length
        self._stand_ins, self._trains = stand_ins, stand_ins.learned_row is not None
        self._whole_rows = () if self._trains else masks
        nodes = one.captured.graph.nodes
        self._twins: dict[Node, Node] = dict(zip(nodes, whole.captured.graph.nodes, strict=True))
        self._params, self._constants = {name: params[name] for name in one.params}, dict[str, Tensor]()
        self._graph = Graph()
        leaves = one.captured.placeholders
        self._at: dict[Node, Node] = {node: self._graph.node_copy(node) for node in leaves}
        self._names = dict(zip(leaves, (*one.captured.params, *one.captured.buffers), strict=False))
        #: The first placeholder behind those of parameters.
        self._end = self._at[leaves[len(one.captured.params)]]
        trained = set(leaves[: len(one.captured.params)]) if self._trains else set[Node]()
        self._learned = Learned(one.captured.graph, trained, one, self._twins)
        self._read: set[str] = set()

    def result(self) -> OneToken:
        """The graph of one token, and what it reads."""
        captured = self._one.captured
        for node in captured.graph.nodes:
            if node.op == "output":
                self._graph.output(map_arg(node.args[0], functools.partial(self._argument, node)))
            elif self._trains and node.target is torch._C._set_grad_enabled:
                raise self._refused(node, "of what is trained")
            elif node.op == "call_function" and node not in self._one and not self._is_of_pairs(node):
                self._check(node)
                self._add(node, *self._call(node))
        params = tuple(self._params)
        made = captured._replace(graph=self._graph, params=params, constants=self._constants, other=None)
        return OneToken(made, self._params, frozenset(self._read))

    def _add(self, node: Node, target: Any, args: Any, kwargs: Any) -> None:
        """An operation that gives what `node` gives."""
        made = self._at[node] = self._graph.call_function(target, args, kwargs)
        made.meta = dict(node.meta)

    def _call(self, node: Any) -> tuple[Any, Any, Any]:
        if operation_of(node) == _ATTENTION:
            terms = self._terms(node)
            kwargs = {name: value for name, value in node.kwargs.items() if name in ("scale", "enable_gqa")}
            for name, parts in (("of_keys", terms.of_keys), ("of_queries", terms.of_queries)):
                kwargs |= {name: [self._term(node, each) for each in parts]} if parts else {}
            kwargs |= {"dropout_p": share} if (share := dropped_of(node)) else {}
            target = self._stand_ins.attention if terms.causal else self._stand_ins.full
            return target, tuple(self._argument(node, each) for each in node.args[:3]), kwargs
        if node.target in self._stand_ins.recurrent:
            x, _, params, *settings = node.args
            given: tuple[Any, ...] = map_arg((x, [], params), functools.partial(self._argument, node))
            return self._stand_ins.recurrent[node.target], (*given, *settings), {}
        args, kwargs = map_arg((node.args, node.kwargs), functools.partial(self._argument, node))
        name = self._names.get(node.args[0], "") if operation_of(node) == "embedding" else ""
        if name in self._whole_rows:  # rows are read where they lie, instead of being put together of their survivors
            args = (self._whole_leaf(name, node.args[0]), *args[1:])
        return node.target, args, kwargs

    def _whole_leaf(self, name: str, leaf: Node) -> Node:
        """A parameter as another one, of which nothing is pruned."""
        self._params[f"{name}, with zeros"] = self._params[name]
        with self._graph.inserting_before(self._end):
            made = self._graph.placeholder(f"{name}, with zeros")
        made.meta = dict(leaf.meta)
        return made

    def _argument(self, user: Node, node: Node) -> Node:
        if node not in self._at and self._is_of_pairs(node):
            raise self._refused(user, "of other tokens than the one at its place")
        if node not in self._at and node in self._learned:
            self._add(node, *self._learned_call(user, node))
        if node not in self._at:  # it depends on no token
            name, table = f"table_{len(self._constants)}", self._table(user, node)
            self._constants[name] = table
            self._at[node] = self._graph.get_attr(name)
            if table.shape != node.meta["val"].shape:
                self._add(node, self._stand_ins.row, (self._at[node],), {})
        return self._at[node]

    def _learned_call(self, user: Node, node: Node) -> tuple[Any, Any, Any]:
        """What parameters give: the same for all tokens, or numbers of a parameter for each."""
        if self._learned.is_same(node):
            args, kwargs = map_arg((node.args, node.kwargs), functools.partial(self._argument, node))
            return node.target, args, kwargs
        leaf = self._learned.leaf_of(node)
        table = None if leaf is None else self._table(user, node, torch.int64)
        if leaf is None or table is None or table.shape == node.meta["val"].shape:
            raise self._refused(user, "of parameters that depend on a token's place in another way than by its rows")
        name = f"table_{len(self._constants)}"
        self._constants[name] = table
        return self._stand_ins.learned_row, (self._at[leaf], self._graph.get_attr(name)), {}

    def _table(self, user: Node, node: Node, dtype: torch.dtype = torch.float32) -> Tensor:
        """What depends on no token: its values at all places, (length, …), or one for all of them."""
        self._read |= {self._names[each] for each in leaves_of(node)} & self._one.buffers.keys()
        one, whole = self._one.value(node), self._whole.value(self._twins[node])
        if not isinstance(one, Tensor) or one.dtype != dtype:
            raise self._refused(user, "of a tensor made in forward that is not float32")
        if one.shape == whole.shape and torch.equal(one, whole):
            return one
        places = _differing(one.shape, whole.shape)
        if len(places) != 1 or (one.shape[places[0]], whole.shape[places[0]]) != (1, self._length):
            raise self._refused(user, "of what depends on a token's place in another way than by rows of a table")
        table: Tensor = whole.movedim(places[0], 0).reshape(self._length, *one.shape)
        return table

    def _check(self, node: Any) -> None:
        """Refuse what may mix tokens."""
        name = operation_of(node)
        if node.target in self._stand_ins.recurrent:
            self._check_recurrent(node)
            return
        if name == _ATTENTION:
            self._check_attention(node)
        elif name == "dropout" and dropped_of(node) and not self._stand_ins.lanes:
            raise self._refused(node, "that drops something")
        elif name in _OVER_LAST | _OVER_GIVEN:
            over = node.args[1] if name in _OVER_GIVEN else -1
            if self._places(node, node.args[0]) in (over, over - node.args[0].meta["val"].ndim):
                raise self._refused(node, "over a sequence's tokens")
        elif name not in _EACH:
            raise self._refused(node, "")
        self._places(node, node)

    def _places(self, user: Node, node: Any) -> int:
        """The dimension of places of a value that depends on tokens, counted from behind (-1 for the last)."""
        both = [each.meta["val"] for each in (node, self._twins[node])]
        pairs = zip(*map(_listed, both), strict=True)
        found: set[int] = set()
        for one, whole in pairs:
            places = _differing(one.shape, whole.shape)
            if len(places) != 1 or whole.shape[places[0]] != self._length * one.shape[places[0]]:
                raise self._refused(user, "of other tokens than the one at its place")
            found.add(places[0] - one.ndim)
        if len(found) != 1:
            raise self._refused(user, "of other tokens than the one at its place")
        return found.pop()

    def _check_attention(self, node: Any) -> None:
        if any(each in self._one or self._places(node, each) != -2 for each in node.args[:3]):
            raise self._refused(node, "over another dimension than that of tokens")
        terms = self._terms(node)
        if not terms.causal and self._stand_ins.full is None:
            raise self._refused(node, "that is not causal")
        if not self._stand_ins.lanes and (terms.of_keys or terms.of_queries or dropped_of(node)):
            raise self._refused(node, "that drops something or has a mask of tokens")

    def _terms(self, node: Any) -> Terms:
        """What is added to attention's scores."""
        mask = argument(node.args, 3, node.kwargs.get("attn_mask"))
        if mask is None:
            return Terms([], [], bool(argument(node.args, 5, node.kwargs.get("is_causal", False))))
        alike = self._value(mask) is not None or mask.meta["val"].ndim == node.meta["val"].ndim
        found = terms_of(mask, self._twins, self._length, self._value) if alike else None
        if found is None:
            raise self._refused(node, "that is not causal, under a mask of more than a query's or a key's token")
        return found

    def _term(self, user: Node, term: Term) -> tuple[Node, bool]:
        """(a term of a mask, as the mask has its dimensions, whether it is inverted)."""
        found, value = self._argument(user, term.node), term.node.meta["val"]
        if term.leading is not None and term.leading != value.shape[:-2]:
            shape = [*term.leading, 1, 1]
            found = self._graph.call_function(torch.ops.aten.reshape.default, (found, shape))
            found.meta = {**term.node.meta, "val": value.reshape(shape)}
        return found, term.inverted

    def _value(self, node: Node) -> Tensor | None:
        """Of what depends on no token, and on nothing that is trained, at all places."""
        known = node in self._one and node not in self._learned
        return self._whole.value(self._twins[node]) if known else None

    def _is_of_pairs(self, node: Node) -> bool:
        """Whether it is a mask, or a part of one, for each query and key: attention alone may read those."""
        one, whole = (each.meta.get("val") for each in (node, self._twins[node]))
        return self._stand_ins.lanes and node not in self._one and is_of_pairs(one, whole, self._length)

    def _check_recurrent(self, node: Any) -> None:
        x, states, _, _, _, _, _, both, batch_first = node.args
        if both:
            raise self._refused(node, "in both directions")
        if x in self._one or self._places(node, x) != (-2 if batch_first else -3):
            raise self._refused(node, "over another dimension than that of tokens")
        if any(each not in self._one or self._one.value(each).any() for each in _listed(states)):
            raise self._refused(node, "from a state that is not zero")

    def _refused(self, node: Node, form: str) -> UserError:
        what = described(node, form, self._one.captured.name)
        return UserError(f"decoding_program has no rule for {what}")


def _listed(found: Any) -> list[Any]:
    """An operation's result or argument where it may be one or several."""
    return list(found) if isinstance(found, (list, tuple)) else [found]


def _differing(one: Sequence[int], other: Sequence[int]) -> list[int]:
    """The dimensions in which two shapes differ; all, where they have not as many."""
    if len(one) != len(other):
        return list(range(len(one)))
    return [dim for dim, sizes in enumerate(zip(one, other, strict=True)) if sizes[0] != sizes[1]]
