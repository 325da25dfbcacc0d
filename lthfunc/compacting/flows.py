"""How facts flow through each operation: forwards what varies, backwards what is needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.compacting.facts import CONSTANT, VARIES, ZERO, Facts, Flow, args_of, during
from lthfunc.sparse.rules.interface import argument

_aten = torch.ops.aten

LAYERS = (_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding, _aten.conv1d.default, _aten.conv1d.padding)
_ALIKE = (
    "relu", "relu6", "hardtanh", "sigmoid", "tanh", "gelu", "silu", "elu", "leaky_relu", "hardswish", "hardsigmoid",
    "softplus", "mish", "selu", "celu", "dropout", "feature_dropout", "alias", "clone", "contiguous", "detach", "neg",
    "abs", "exp",
)  # fmt: skip
_POOLING = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_JOINING = ("add", "sub", "mul", "div", "maximum", "minimum")

#: Operations that treat every unit alike and apart from others.
ALIKE = tuple(getattr(_aten, name).default for name in _ALIKE)
POOLS = tuple(getattr(_aten, name).default for name in _POOLING)
#: Operations of two values with the same units, or of one and a number.
JOINS = tuple(
    getattr(getattr(_aten, name), overload)
    for name in _JOINING for overload in ("Tensor", "default") if hasattr(getattr(_aten, name), overload)
)  # fmt: skip
NORM, CAT, MEAN, SLICE = _aten.batch_norm.default, _aten.cat.default, _aten.mean.dim, _aten.slice.Tensor
PADS = (_aten.pad.default, _aten.constant_pad_nd.default)
FLATTENS = (_aten.flatten.using_ints, _aten.view.default, _aten.reshape.default)


def groups_of(node: Node) -> int:
    """Of a convolution; 1 for a linear layer."""
    return 1 if node.target is _aten.linear.default else int(argument(args_of(node), 6, 1))


def dimension(node: Node) -> int:
    """Of a slice or concatenation."""
    return int(argument(args_of(node), 1, 0)) % int(node.meta["val"].ndim)


def _is_known(node: Node, facts: Facts) -> bool:
    """Whether anything may be known of it."""
    return node.op == "call_function" and node not in facts.whole


def _reads_units(node: Node, facts: Facts) -> bool:
    """Whether its first argument has units, and nothing else that it is told is known only as a batch comes."""
    args = args_of(node) if _is_known(node, facts) else ()
    told = (each for part in args[1:] if isinstance(part, (list, tuple)) for each in part)
    return bool(args) and facts.has_units(args[0]) and not any(isinstance(each, Node) for each in told)


def is_layer(node: Node, facts: Facts) -> bool:
    """Whether it is a linear layer or convolution whose parameters may be cut."""
    if node.target not in LAYERS or not _reads_units(node, facts) or not facts.sole(args_of(node)[1]):
        return False
    bias = argument(args_of(node), 2, None)
    weight = facts.params[facts.leaves[args_of(node)[1]]]
    return (bias is None or facts.sole(bias)) and node.meta["val"].ndim == weight.ndim


def is_norm(node: Node, facts: Facts) -> bool:
    """Whether it is a normalisation over the batch whose parameters and buffers may be cut."""
    if node.target is not NORM or not _reads_units(node, facts):
        return False
    return all(each is None or facts.sole(each) for each in args_of(node)[1:5])


def is_alike(node: Node, facts: Facts) -> bool:
    """Whether each of its units comes from the same one of its (first) argument alone."""
    if not _reads_units(node, facts):
        return False
    if node.target in POOLS:  # of three dimensions it takes the batch for channels
        return int(node.meta["val"].ndim) == 4
    if node.target is MEAN:
        rank = args_of(node)[0].meta["val"].ndim
        dims = args_of(node)[1]
        return bool(dims) and all(dim % rank >= 2 for dim in dims)
    if node.target is SLICE:
        return dimension(node) >= 2
    if node.target in PADS:
        return len(args_of(node)[1]) <= 2 * (int(node.meta["val"].ndim) - 2)
    return node.target in ALIKE


def is_join(node: Node, facts: Facts) -> bool:
    """Whether it combines values of equally many units, or one and numbers."""
    if node.target not in JOINS or not _is_known(node, facts):
        return False
    parts = [each for each in args_of(node)[:2] if isinstance(each, Node)]
    rank = node.meta["val"].ndim
    return bool(parts) and all(
        facts.has_units(each) and facts.units(each) == facts.units(node) and each.meta["val"].ndim == rank
        for each in parts
    )


def is_cat(node: Node, facts: Facts) -> bool:
    """Whether it puts units side by side."""
    if node.target is not CAT or not _is_known(node, facts):
        return False
    return dimension(node) == 1 and all(map(facts.has_units, args_of(node)[0]))


def is_flatten(node: Node, facts: Facts) -> bool:
    """Whether it makes features of all units' places."""
    value = node.meta.get("val")
    source = args_of(node)[0] if args_of(node) else None
    if node.target not in FLATTENS or not _is_known(node, facts) or not facts.has_units(source):
        return False
    return facts.has_units(node) and value is not None and value.ndim == 2


def is_part(node: Node, facts: Facts) -> bool:
    """Whether it takes some units, or adds units of a number."""
    if not _reads_units(node, facts) or any(isinstance(each, Node) for each in args_of(node)[1:]):
        return False
    if node.target is SLICE:
        return dimension(node) == 1
    if node.target in PADS:
        fill = argument(args_of(node), 3 if node.target is PADS[0] else 2, 0) or 0
        amounts = args_of(node)[1]
        rank = node.meta["val"].ndim
        return fill == 0 and len(amounts) == 2 * (rank - 1) and not any(amounts[: 2 * (rank - 2)])
    return False


def sources(node: Node, facts: Facts) -> Tensor:
    """int64: for each unit of a `part`, the unit of its argument, or -1 for one that was added."""
    count = facts.units(args_of(node)[0])
    if node.target is SLICE:
        start, stop, step = (argument(args_of(node), position, None) for position in (2, 3, 4))
        return torch.arange(count)[slice(start, stop, step)]
    before = args_of(node)[1][-2]
    found = torch.arange(facts.units(node)) - before
    return torch.where((found >= 0) & (found < count), found, -1)


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
        return torch.where((before < VARIES) & stopped, ZERO, VARIES).to(torch.int8)
    still = facts.is_constant(node, lambda value: value == 0)
    return torch.where((before == ZERO) & ~still, VARIES, before).to(torch.int8)


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
    if not _is_known(node, facts):
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
