"""Transfer functions of the operations: forwards which units vary, backwards which are needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.deployment.compaction import operations
from lthfunc.deployment.compaction.liveness import CONSTANT, VARIES, ZERO, Liveness, Transfer, args_of, naming_errors
from lthfunc.sparse.lowerings.interface import argument

_aten = torch.ops.aten


def _layer_constancy(node: Node, facts: Liveness) -> Tensor:
    x, weight, groups = args_of(node)[0], facts.connected(args_of(node)[1]), operations.groups_of(node)
    read = facts.live(x).view(groups, 1, -1) & weight.view(groups, len(weight) // groups, -1)
    varies = read.any(2)
    if groups > 1:
        varies = varies.any(1, keepdim=True).expand_as(varies)
    biased = argument(args_of(node), 2, None) is not None
    return torch.where(varies.flatten(), VARIES, CONSTANT if biased or not facts.training else ZERO).to(torch.int8)


def _layer_needs(node: Node, needed: Tensor, facts: Liveness) -> list[tuple[Node, Tensor]]:
    weight, groups = facts.connected(args_of(node)[1]), operations.groups_of(node)
    asked = needed.view(groups, -1)
    if groups > 1:  # groups are kept or removed as a whole
        return [(args_of(node)[0], asked.any(1, keepdim=True).expand(groups, weight.shape[1]).flatten())]
    return [(args_of(node)[0], (asked.view(-1, 1) & weight).any(0))]


def _norm_constancy(node: Node, facts: Liveness) -> Tensor:
    return torch.clamp(facts.constancy[args_of(node)[0]], min=CONSTANT)  # its shift is trained


def _unitwise_constancy(node: Node, facts: Liveness) -> Tensor:
    before = facts.constancy[args_of(node)[0]]
    if not facts.training:
        return before.clone()
    if node.target is _aten.relu.default:  # passes no gradient back where its input isn't above zero
        stopped = facts.is_constant(args_of(node)[0], lambda value: value <= 0)
        if not _trained_only_through_relu(args_of(node)[0], facts):
            stopped &= before == ZERO
        return torch.where((before < VARIES) & stopped, ZERO, VARIES).to(torch.int8)
    still = facts.is_constant(node, lambda value: value == 0)
    return torch.where((before == ZERO) & ~still, VARIES, before).to(torch.int8)


def _trained_only_through_relu(node: Node, facts: Liveness) -> bool:
    """Whether only ReLUs read what makes a constant: another reader may train its bias to be above zero."""
    readers = [user for user in node.users if isinstance(user.meta.get("val"), Tensor) or user.op == "output"]
    if len(readers) > 1 and any(user.target is not _aten.relu.default for user in readers):
        return False
    if any(each in facts.leaves and len(each.users) > 1 for each in node.all_input_nodes):
        return False  # a bias that several layers share
    if operations.is_layer(node, facts):
        return True
    return all(_trained_only_through_relu(each, facts) for each in node.all_input_nodes if facts.has_units(each))


def _binary_constancy(node: Node, facts: Liveness) -> Tensor:
    constancy = torch.stack([facts.constancy[each] for each in args_of(node)[:2] if isinstance(each, Node)]).amax(0)
    if facts.training:
        still = (constancy == ZERO) & facts.is_constant(node, lambda value: value == 0)
        constancy = torch.where(still, ZERO, VARIES)
    return constancy.to(torch.int8)


def _cat_constancy(node: Node, facts: Liveness) -> Tensor:
    return torch.cat([facts.constancy[each] for each in args_of(node)[0]])


def _cat_needs(node: Node, needed: Tensor, facts: Liveness) -> list[tuple[Node, Tensor]]:
    parts = torch.split(needed, [facts.units(each) for each in args_of(node)[0]])
    return list(zip(args_of(node)[0], parts, strict=True))


def _flatten_constancy(node: Node, facts: Liveness) -> Tensor:
    source = facts.constancy[args_of(node)[0]]
    return source.repeat_interleave(facts.units(node) // len(source))


def _flatten_needs(node: Node, needed: Tensor, facts: Liveness) -> list[tuple[Node, Tensor]]:
    return [(args_of(node)[0], needed.view(facts.units(args_of(node)[0]), -1).any(1))]


def _slice_constancy(node: Node, facts: Liveness) -> Tensor:
    source, units = facts.constancy[args_of(node)[0]], operations.sources(node, facts)
    return torch.where(units >= 0, source[units.clamp(min=0)], ZERO).to(torch.int8)


def _slice_needs(node: Node, needed: Tensor, facts: Liveness) -> list[tuple[Node, Tensor]]:
    units = operations.sources(node, facts)
    asked = torch.zeros(facts.units(args_of(node)[0]), dtype=torch.bool)
    asked[units[needed & (units >= 0)]] = True
    return [(args_of(node)[0], asked)]


def _same_needs(node: Node, needed: Tensor, facts: Liveness) -> list[tuple[Node, Tensor]]:
    return [(each, needed) for each in args_of(node)[:2] if facts.has_units(each)]


def _all_vary(node: Node, facts: Liveness) -> Tensor:
    return torch.full((facts.units(node),), VARIES, dtype=torch.int8)


def _all_needed(node: Node, needed: Tensor, facts: Liveness) -> list[tuple[Node, Tensor]]:
    read = [each for each in node.all_input_nodes if facts.has_units(each)]
    return [(each, torch.ones(facts.units(each), dtype=torch.bool)) for each in read]


_TRANSFERS = {
    operations.is_layer: Transfer(_layer_constancy, _layer_needs),
    operations.is_norm: Transfer(_norm_constancy, _same_needs),
    operations.is_unitwise: Transfer(_unitwise_constancy, _same_needs),
    operations.is_binary: Transfer(_binary_constancy, _same_needs),
    operations.is_cat: Transfer(_cat_constancy, _cat_needs),
    operations.is_flatten: Transfer(_flatten_constancy, _flatten_needs),
    operations.is_slice_or_pad: Transfer(_slice_constancy, _slice_needs),
}
#: Of an unknown operation, which may read everything.
_UNKNOWN = Transfer(_all_vary, _all_needed)


def transfer_of(node: Node, facts: Liveness) -> Transfer:
    """An operation's transfer functions."""
    if not operations.is_known(node, facts):
        return _UNKNOWN
    return next((flow for fits, flow in _TRANSFERS.items() if fits(node, facts)), _UNKNOWN)


def solve(facts: Liveness, *, aligned: bool = False) -> None:
    """Find which units vary, then which are needed, to a fixed point.

    aligned: values that unit-wise operations connect keep the same units, including those that one operand of a binary
    operation lost. The sparse engine wants this; a unit without weights costs it next to nothing.
    """
    nodes = list(facts.captured.graph.nodes)
    for node in nodes:
        if facts.has_units(node):
            with naming_errors(facts, node):
                facts.constancy[node] = transfer_of(node, facts).constancy(node, facts)
            facts.needed[node] = torch.full((facts.units(node),), node in facts.opaque, dtype=torch.bool)
    before = -1
    while (now := sum(int(facts.wanted_units(node).sum()) for node in facts.needed)) != before:
        before = now
        _ask(nodes, facts, aligned=aligned)
        if aligned:
            _take_along(nodes, facts)


def _ask(nodes: list[Node], facts: Liveness, *, aligned: bool) -> None:
    """Backwards from the outputs: mark what needed units are computed from."""
    for node in reversed(nodes):
        with naming_errors(facts, node):
            if node.op == "output" or not facts.has_units(node):
                found = _all_needed(node, torch.zeros(0), facts)  # an output, or a value without units that reads some
            else:
                found = transfer_of(node, facts).needs(node, facts.wanted_units(node), facts)
                # A normalisation's shift is trained, so in training its units outlive those of the layer before it.
                if aligned or operations.is_norm(node, facts):
                    _keep(found, node, facts)
            for source, needed in found:
                facts.needed[source] |= needed


def _take_along(nodes: list[Node], facts: Liveness) -> None:
    """Forwards: unit-wise operations keep all units that their inputs have."""
    for node in nodes:
        if not facts.has_units(node):
            continue
        if operations.is_slice_or_pad(node, facts):
            units = operations.sources(node, facts)
            read = facts.wanted_units(args_of(node)[0])
            there = (units >= 0) & read[units.clamp(min=0)]
        elif transfer_of(node, facts).needs is _same_needs:
            parts = [facts.wanted_units(each) for each in node.all_input_nodes if facts.has_units(each)]
            there = torch.stack(parts).any(0)
        else:
            continue
        facts.needed[node] |= there
        facts.constancy[node][there] = VARIES


def _keep(found: list[tuple[Node, Tensor]], node: Node, facts: Liveness) -> None:
    """Keep what a unit-wise operation reads, constant or not, back to the layers that make it."""
    if operations.is_layer(node, facts) or transfer_of(node, facts) is _UNKNOWN:
        return
    for source, units in found:
        facts.constancy[source][units] = VARIES
