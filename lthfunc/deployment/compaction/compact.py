"""A ticket's network without dead units, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.arguments import public
from lthfunc.deployment.compaction.dataflow import solve
from lthfunc.deployment.compaction.liveness import Liveness, args_of, values_of
from lthfunc.deployment.compaction.modules import module_of
from lthfunc.deployment.compaction.narrowing import Narrowed, loses_units, narrowed
from lthfunc.deployment.compaction.rewriting import Cut, Rewriter, rewritten
from lthfunc.deployment.compaction.tracing import Traced, cannot, traced
from lthfunc.errors import UserError, failing_as
from lthfunc.tracebacks import first_line
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks, same_bits, to_device
from lthfunc.trees.types import Buffers, Masks, Params, Ticket, TrainState

_aten = torch.ops.aten


class Compacted(NamedTuple):
    """A smaller network with the same outputs.

    model, params, buffers, masks: the network; leaves keep the names that they have in the whole network. cuts: for
    each remaining leaf, the int64 indices that remain along each dimension (None: all).
    """

    model: Model
    params: Params
    buffers: Buffers
    masks: Masks
    cuts: dict[str, Cut]


@public
def compact(model: Model, ticket: Ticket | TrainState, shape: tuple[int, ...], *, selecting: bool = True) -> Compacted:
    """Remove the inputs, units, channels, heads and dimensions that no output depends on, in evaluation mode.

    Units that do not depend on the input are constants: they are folded into the biases of the layers that read them,
    or, where padding makes them differ from place to place, into a constant that is added. The analysis follows the
    traced graph through linear layers and convolutions (grouped ones by whole groups), batch normalisation, pooling,
    activations, residual additions, concatenations, flattening, slices and padding; every other operation keeps its
    whole inputs. Where features lie behind positions, as in transformers, what `lf.dependency_groups` finds goes as a
    whole: heads, dimensions of embeddings and residual streams (which normalisations go on to count), hidden units.

    ticket: params, buffers and masks of `model`. shape: of one input, without the batch. selecting: whether the inputs
    that a linear layer doesn't read are taken out of a flattened value; the sparse engine doesn't need that.

    Returns a `Compacted`. Raises UserError where the ticket doesn't fit the model, where the network cannot be traced,
    and for an operation that depends on the batch size, such as a view that names it.

    >>> import torch, lthfunc as lf
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> model = lf.from_module(net)
    >>> ticket = lf.ticket(lf.prune(density=0.3)(lf.init(model)))
    >>> small = lf.compact(model, ticket, (4,))
    >>> {name: tuple(leaf.shape) for name, leaf in small.params.items()}
    {'0.weight': (1, 2), '0.bias': (1,), '2.weight': (1, 1), '2.bias': (1,)}
    """
    with _refusing(model):
        graph = traced(model, ticket.params, shape, training=False)
        narrow = narrowed(graph, ticket.params, ticket.buffers, ticket.masks, shape)
        if narrow is None:
            return _without_channels(model, ticket, graph, shape, selecting=selecting)
        narrow.graph.eliminate_dead_code()
        first = _evaluating(model, narrow, ticket)
        if not any(map(loses_units, first.masks.values())):
            return first
        rest = Ticket(first.params, first.buffers, first.masks)
        first.model.evaluating.float()  # which is traced like any other network, in the ticket's dtype
        graph = traced(first.model, first.params, shape, training=False)
        small = _without_channels(first.model, rest, graph, shape, selecting=selecting)
        return small._replace(cuts=_one_after_another(first.cuts, small.cuts))


def _without_channels(
    model: Model, ticket: Ticket | TrainState, graph: Traced, shape: tuple[int, ...], *, selecting: bool
) -> Compacted:
    """Without units and channels along dimension 1, one by one."""
    facts = _facts(graph, ticket, [_values(graph, ticket, shape)], training=False)
    solve(facts, aligned=not selecting)
    r = rewritten(facts, selecting=selecting)
    r.graph.eliminate_dead_code()  # branches of which nothing is wanted
    return _evaluating(model, r, ticket)


def _evaluating(model: Model, r: Rewriter | Narrowed, ticket: Ticket | TrainState) -> Compacted:
    """The network that a graph in evaluation mode computes."""
    params, buffers = _leaves(r, ticket.params, ticket.buffers, ticket.masks)
    module = module_of(r.graph, params, buffers).eval()
    return _compacted(model, r, module, module, params, buffers, ticket.masks)


def _one_after_another(first: Mapping[str, Cut], then: Mapping[str, Cut]) -> dict[str, Cut]:
    """The cuts of leaves that were cut twice."""

    def joined(one: Tensor | None, other: Tensor | None) -> Tensor | None:
        return other if one is None else one if other is None else one[other]

    return {
        name: tuple(joined(*both) for both in zip_longest(first.get(name, ()), each)) for name, each in then.items()
    }  # fmt: skip


@public
def compact_training(model: Model, state: TrainState, shape: tuple[int, ...], *, selecting: bool = True) -> Compacted:
    """Remove what training from this state can neither use nor revive.

    That is: units that no surviving weight reads, and units behind ReLU that read nothing and are zero, with all
    their weights; and, with `selecting`, inputs that nothing reads. The rest trains exactly as in the whole network.
    Running statistics of removed channels, on which nothing depends, keep their values.

    Raises UserError as `compact` does, and for dropout, whose draws depend on the number of units.
    """
    with _refusing(model):
        graph = traced(model, state.params, shape, training=True)
        for node in graph.captured.graph.nodes:
            if _draws(node):
                raise cannot(graph.captured, node, "draws for every unit, so training is not the same without some")
        facts = _facts(graph, state, [_values(graph, state, shape)], training=True)
        evaluating, partner = _in_evaluation(model, facts, state.params, shape)
        values = _values(evaluating, state, shape)
        facts.values.append({partner[node]: value for node, value in values.items() if node in partner})
        solve(facts, aligned=not selecting)
        r = rewritten(facts, selecting=selecting)
        params, buffers = _leaves(r, state.params, state.buffers, state.masks)
        theirs = _facts(evaluating, state, [values], training=True)
        there = {ours: other for other, ours in partner.items()}
        theirs.constancy = {there[node]: constancy for node, constancy in facts.constancy.items()}
        theirs.needed = {there[node]: needed for node, needed in facts.needed.items()}
        other = rewritten(theirs, selecting=selecting, kind="evaluating_")
        constants = {**buffers, **to_device(other.constants, state.step.device)}
        in_training = module_of(r.graph, params, buffers).train()
        in_evaluation = module_of(other.graph, params, constants).eval()
        return _compacted(model, r, in_training, in_evaluation, params, constants, state.masks)


def same_cuts(model: Model, one: TrainState, other: TrainState, shape: tuple[int, ...]) -> bool:
    """Whether training from two states would remove the same parts of a network."""
    return same_bits(*(compact_training(model, state, shape).cuts for state in (one, other)))


def cut(tree: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """A tree named like the whole network's leaves (a gradient, a mask), restricted to the remaining indices."""
    return {name: _cut(leaf, cuts[name]) for name, leaf in tree.items() if name in cuts}


@public
def put_back(whole: Mapping[str, Tensor], part: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Write the values of a compacted network's tree into the whole network's tree.

    whole: a tree with the whole network's leaves. part: a tree with leaves of the compacted network, such as its params
    after training. cuts: of the `Compacted` network.

    Returns a new tree with the leaves of `whole`; what compaction removed keeps its values. Raises UserError where a
    leaf of `part` has no cut.

    >>> import torch, lthfunc as lf
    >>> cuts = {"weight": (torch.tensor([1]), None)}
    >>> lf.put_back({"weight": torch.zeros(2, 2)}, {"weight": torch.ones(1, 2)}, cuts)["weight"]
    tensor([[0., 0.],
            [1., 1.]])
    """
    for name in part:
        if name in whole and name not in cuts:
            raise UserError(f"put_back: cuts: {name!r} is missing; they are the cuts of what lf.compact gave")
    return {name: _put_back(leaf, part[name], cuts[name]) if name in part else leaf for name, leaf in whole.items()}


def left_out(small: Compacted, params: Params, masks: Masks) -> dict[str, Tensor]:
    """For each leaf the int64 positions in the flattened leaf of surviving weights that the compacted network lacks."""
    found = {}
    for name, leaf in params.items():
        there = masks.get(name, torch.ones_like(leaf, dtype=torch.bool))
        if name in small.cuts:
            kept = torch.ones_like(_cut(there, small.cuts[name]))
            there = there & ~_put_back(torch.zeros_like(there), kept, small.cuts[name])
        found[name] = there.flatten().nonzero().flatten()
    return found


def _draws(node: Node) -> bool:
    """Whether an operation draws random numbers; dropout of 0, or in evaluation mode, doesn't."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    target: Any = node.target
    args = {each.name: given for each, given in zip(target._schema.arguments, args_of(node), strict=False)}
    args |= {each.name: each.default_value for each in target._schema.arguments if each.name not in args}
    args |= node.kwargs
    return args.get("train", True) is not False and all(args.get(name) != 0 for name in ("p", "dropout", "dropout_p"))


def _refusing(model: Model) -> AbstractContextManager[None]:
    """Raise any error that a user's graph causes as a UserError."""
    return failing_as(lambda error: f"compact: {model.name} cannot be compacted: {first_line(error)}")


def _facts(graph: Traced, ticket: Ticket | TrainState, values: list[dict[Node, Tensor]], *, training: bool) -> Liveness:
    params, masks = to_device((apply_masks(ticket.params, ticket.masks), ticket.masks), "cpu")
    captured = graph.captured
    placeholders = captured.placeholders
    leaves = dict(zip(placeholders, (*captured.params, *captured.buffers), strict=False))
    frozen = to_device(ticket.buffers, "cpu")
    parameters = {**params, **frozen}
    return Liveness(
        captured, graph.with_units, graph.opaque, parameters, masks, training, values, leaves, frozenset(frozen)
    )


def _values(graph: Traced, ticket: Ticket | TrainState, shape: tuple[int, ...]) -> dict[Node, Tensor]:
    return values_of(graph, apply_masks(ticket.params, ticket.masks), ticket.buffers, shape)


def _in_evaluation(
    model: Model, facts: Liveness, params: Params, shape: tuple[int, ...]
) -> tuple[Traced, dict[Node, Node]]:
    """(the graph in evaluation mode, its nodes with units -> those of the graph in training mode)."""
    other = traced(model, params, shape, training=False)
    ours = [node for node in facts.captured.graph.nodes if node in facts.with_units]
    theirs = [node for node in other.captured.graph.nodes if node in other.with_units]
    partner = dict(zip(theirs, ours, strict=False))
    known = set(ours)
    if len(ours) != len(theirs) or not all(_alike(a, b, partner, known) for a, b in partner.items()):
        raise UserError(f"compact: {model.name} computes different operations in training and in evaluation")
    return other, partner


def _alike(theirs: Node, ours: Node, partner: dict[Node, Node], known: set[Node]) -> bool:
    """Whether two nodes are the same operation on the same values."""
    read = [partner[each] for each in theirs.all_input_nodes if each in partner]
    return theirs.target == ours.target and read == [each for each in ours.all_input_nodes if each in known]


def _leaves(r: Rewriter | Narrowed, params: Params, buffers: Buffers, masks: Masks) -> tuple[Params, Buffers]:
    device = next(iter(params.values())).device
    changed, constants = to_device((r.changed, r.constants), device)
    new = {**cut(apply_masks(params, masks), r.cuts), **changed}
    order = [*params, *(name for name in r.changed if name not in params)]
    return {name: new[name] for name in order if name in new}, {**cut(buffers, r.cuts), **constants}


def _compacted(
    model: Model, r: Rewriter | Narrowed, training: Any, evaluating: Any, params: Params, buffers: Buffers, masks: Masks
) -> Compacted:
    left = {name for name, _ in evaluating.named_parameters()}
    params = {name: leaf for name, leaf in params.items() if name in left}
    kept = {name for name, _ in training.named_buffers()} | {name for name, _ in evaluating.named_buffers()}
    buffers = {name: leaf for name, leaf in buffers.items() if name in kept}
    prunable = tuple(name for name in model.prunable if name in params)
    small = model._replace(
        training=training, evaluating=evaluating, prunable=prunable, init=lambda seed: (params, buffers)
    )
    cuts = {name: each for name, each in r.cuts.items() if name in params or name in buffers}
    return Compacted(small, params, buffers, cut({name: masks[name] for name in prunable if name in masks}, cuts), cuts)


def _cut(leaf: Tensor, indices: Cut) -> Tensor:
    for dimension, index in enumerate(indices):
        if index is not None:
            leaf = leaf.index_select(dimension, index.to(leaf.device))
    return leaf


def _put_back(leaf: Tensor, part: Tensor, indices: Cut) -> Tensor:
    if not leaf.ndim:
        return part.clone()
    grid = [torch.arange(size) for size in leaf.shape]
    for dimension, index in enumerate(indices):
        if index is not None:
            grid[dimension] = index
    result = leaf.clone()
    result[torch.meshgrid(*(each.to(leaf.device) for each in grid), indexing="ij")] = part
    return result
