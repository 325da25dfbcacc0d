"""How facts flow through each operation: forwards what varies, backwards what is needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.deployment.compaction.liveness import CONSTANT, VARIES, ZERO, Facts, Flow, args_of, during
from lthfunc.deployment.compaction.operations import (
    groups_of,
    is_alike,
    is_cat,
    is_flatten,
    is_join,
    is_known,
    is_layer,
    is_norm,
    is_part,
    sources,
)
from lthfunc.sparse.lowerings.interface import argument

_aten = torch.ops.aten


def _layer_fates(node: Node, facts: Facts) -> Tensor:
    x, weight, groups = args_of(node)[0], facts.connected(args_of(node)[1]), groups_of(node)
    read = facts.live(x).view(groups, 1, -1) & weight.view(groups, len(weight) // groups, -1)
    varies = read.any(2)
    if groups > 1:
        varies = varies.any(1, keepdim=True).expand_as(varies)
    biased = argument(args_of(node), 2, None) is not None
    return torch.where(varies.flatten(), VARIES, CONSTANT if biased or not facts.training else ZERO).to(torch.int8)


def _layer_needs(node: Node, needed: Tensor, facts: Facts) -> list[tuple[Node, Tensor]]:
    weight, groups = facts.connected(args_of(node)[1]), groups_of(node)
    asked = needed.view(groups, -1)
    if groups > 1:  # a group goes whole or not at all
        return [(args_of(node)[0], asked.any(1, keepdim=True).expand(groups, weight.shape[1]).flatten())]
    return [(args_of(node)[0], (asked.view(-1, 1) & weight).any(0))]


def _norm_fates(node: Node, facts: Facts) -> Tensor:
    return torch.clamp(facts.fates[args_of(node)[0]], min=CONSTANT)  # its shift is trained


def _alike_fates(node: Node, facts: Facts) -> Tensor:
    before = facts.fates[args_of(node)[0]]
    if not facts.training:
        return before.clone()
    if node.target is _aten.relu.default:  # hands back no gradient where its input isn't above zero
        stopped = facts.is_constant(args_of(node)[0], lambda value: value <= 0)
        if not _trained_only_through_relu(args_of(node)[0], facts):
            stopped &= before == ZERO
        return torch.where((before < VARIES) & stopped, ZERO, VARIES).to(torch.int8)
    still = facts.is_constant(node, lambda value: value == 0)
    return torch.where((before == ZERO) & ~still, VARIES, before).to(torch.int8)


def _trained_only_through_relu(node: Node, facts: Facts) -> bool:
    """Whether nothing but ReLUs reads what makes a constant: another reader may train its bias to be above zero."""
    readers = [user for user in node.users if isinstance(user.meta.get("val"), Tensor) or user.op == "output"]
    if len(readers) > 1 and any(user.target is not _aten.relu.default for user in readers):
        return False
    if any(each in facts.leaves and len(each.users) > 1 for each in node.all_input_nodes):
        return False  # a bias of several layers
    if is_layer(node, facts):
        return True
    return all(_trained_only_through_relu(each, facts) for each in node.all_input_nodes if facts.has_units(each))


def _join_fates(node: Node, facts: Facts) -> Tensor:
    fates = torch.stack([facts.fates[each] for each in args_of(node)[:2] if isinstance(each, Node)]).amax(0)
    if facts.training:
        still = (fates == ZERO) & facts.is_constant(node, lambda value: value == 0)
        fates = torch.where(still, ZERO, VARIES)
    return fates.to(torch.int8)


def _cat_fates(node: Node, facts: Facts) -> Tensor:
    return torch.cat([facts.fates[each] for each in args_of(node)[0]])


def _cat_needs(node: Node, needed: Tensor, facts: Facts) -> list[tuple[Node, Tensor]]:
    parts = torch.split(needed, [facts.units(each) for each in args_of(node)[0]])
    return list(zip(args_of(node)[0], parts, strict=True))


def _flatten_fates(node: Node, facts: Facts) -> Tensor:
    source = facts.fates[args_of(node)[0]]
    return source.repeat_interleave(facts.units(node) // len(source))


def _flatten_needs(node: Node, needed: Tensor, facts: Facts) -> list[tuple[Node, Tensor]]:
    return [(args_of(node)[0], needed.view(facts.units(args_of(node)[0]), -1).any(1))]


def _part_fates(node: Node, facts: Facts) -> Tensor:
    source, units = facts.fates[args_of(node)[0]], sources(node, facts)
    return torch.where(units >= 0, source[units.clamp(min=0)], ZERO).to(torch.int8)


def _part_needs(node: Node, needed: Tensor, facts: Facts) -> list[tuple[Node, Tensor]]:
    units = sources(node, facts)
    asked = torch.zeros(facts.units(args_of(node)[0]), dtype=torch.bool)
    asked[units[needed & (units >= 0)]] = True
    return [(args_of(node)[0], asked)]


def _same_needs(node: Node, needed: Tensor, facts: Facts) -> list[tuple[Node, Tensor]]:
    return [(each, needed) for each in args_of(node)[:2] if facts.has_units(each)]


def _all_vary(node: Node, facts: Facts) -> Tensor:
    return torch.full((facts.units(node),), VARIES, dtype=torch.int8)


def _all_needed(node: Node, needed: Tensor, facts: Facts) -> list[tuple[Node, Tensor]]:
    read = [each for each in node.all_input_nodes if facts.has_units(each)]
    return [(each, torch.ones(facts.units(each), dtype=torch.bool)) for each in read]


_FLOWS = {
    is_layer: Flow(_layer_fates, _layer_needs),
    is_norm: Flow(_norm_fates, _same_needs),
    is_alike: Flow(_alike_fates, _same_needs),
    is_join: Flow(_join_fates, _same_needs),
    is_cat: Flow(_cat_fates, _cat_needs),
    is_flatten: Flow(_flatten_fates, _flatten_needs),
    is_part: Flow(_part_fates, _part_needs),
}
#: Of an operation that is not known: it may read everything.
_UNKNOWN = Flow(_all_vary, _all_needed)


def flow_of(node: Node, facts: Facts) -> Flow:
    """How facts flow through an operation."""
    if not is_known(node, facts):
        return _UNKNOWN
    return next((flow for fits, flow in _FLOWS.items() if fits(node, facts)), _UNKNOWN)


def settle(facts: Facts, *, aligned: bool = False) -> None:
    """Find all fates, then all needs.

    aligned: what goes through operations unit by unit has the same units everywhere, also those that one side of a join
    lost: a network for lists, to which a unit without weights costs next to nothing.
    """
    nodes = list(facts.captured.graph.nodes)
    for node in nodes:
        if facts.has_units(node):
            with during(facts, node):
                facts.fates[node] = flow_of(node, facts).fates(node, facts)
            facts.needed[node] = torch.full((facts.units(node),), node in facts.whole, dtype=torch.bool)
    before = -1
    while (now := sum(int(facts.wanted_units(node).sum()) for node in facts.needed)) != before:
        before = now
        _ask(nodes, facts, aligned=aligned)
        if aligned:
            _take_along(nodes, facts)


def _ask(nodes: list[Node], facts: Facts, *, aligned: bool) -> None:
    """Back from the outputs: what is needed for what is needed."""
    for node in reversed(nodes):
        with during(facts, node):
            if node.op == "output" or not facts.has_units(node):
                found = _all_needed(node, torch.zeros(0), facts)  # an output, or something of no units made of some
            else:
                found = flow_of(node, facts).needs(node, facts.wanted_units(node), facts)
                # A normalisation's shift is trained, so in training its units outlive those of the layer before it.
                if aligned or is_norm(node, facts):
                    _keep(found, node, facts)
            for source, needed in found:
                facts.needed[source] |= needed


def _take_along(nodes: list[Node], facts: Facts) -> None:
    """Forwards: operations unit by unit have all units of what they read."""
    for node in nodes:
        if not facts.has_units(node):
            continue
        if is_part(node, facts):
            units = sources(node, facts)
            read = facts.wanted_units(args_of(node)[0])
            there = (units >= 0) & read[units.clamp(min=0)]
        elif is_alike(node, facts) or is_norm(node, facts) or is_join(node, facts):
            parts = [facts.wanted_units(each) for each in node.all_input_nodes if facts.has_units(each)]
            there = torch.stack(parts).any(0)
        else:
            continue
        facts.needed[node] |= there
        facts.fates[node][there] = VARIES


def _keep(found: list[tuple[Node, Tensor]], node: Node, facts: Facts) -> None:
    """What an operation reads unit by unit stays, constant or not, up to the layers that make it."""
    if is_layer(node, facts) or flow_of(node, facts) is _UNKNOWN:
        return
    for source, units in found:
        facts.fates[source][units] = VARIES
