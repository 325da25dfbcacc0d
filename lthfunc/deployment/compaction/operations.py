"""The kinds of operation that compaction knows, and the tests for each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from lthfunc.deployment.compaction.liveness import Liveness, args_of
from lthfunc.sparse.lowerings.interface import argument

_aten = torch.ops.aten

LAYERS = (_aten.linear.default, _aten.conv2d.default, _aten.conv2d.padding, _aten.conv1d.default, _aten.conv1d.padding)
_UNITWISE = (
    "relu", "relu6", "hardtanh", "sigmoid", "tanh", "gelu", "silu", "elu", "leaky_relu", "hardswish", "hardsigmoid",
    "softplus", "mish", "selu", "celu", "dropout", "feature_dropout", "alias", "clone", "contiguous", "detach", "neg",
    "abs", "exp",
)  # fmt: skip
_POOLING = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d")
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")

#: Operations that compute each unit from the same unit of their input alone.
UNITWISE = tuple(getattr(_aten, name).default for name in _UNITWISE)
POOLS = tuple(getattr(_aten, name).default for name in _POOLING)
#: Operations on two values with the same units, or on a value and a number.
BINARY = tuple(
    getattr(getattr(_aten, name), overload)
    for name in _BINARY for overload in ("Tensor", "default") if hasattr(getattr(_aten, name), overload)
)  # fmt: skip
NORM, CAT, MEAN, SLICE = _aten.batch_norm.default, _aten.cat.default, _aten.mean.dim, _aten.slice.Tensor
PADS = (_aten.pad.default, _aten.constant_pad_nd.default)
FLATTENS = (_aten.flatten.using_ints, _aten.view.default, _aten.reshape.default)


def groups_of(node: Node) -> int:
    """A convolution's groups; 1 for a linear layer."""
    return 1 if node.target is _aten.linear.default else int(argument(args_of(node), 6, 1))


def dimension(node: Node) -> int:
    """The dimension of a slice or concatenation."""
    return int(argument(args_of(node), 1, 0)) % int(node.meta["val"].ndim)


def is_known(node: Node, facts: Liveness) -> bool:
    """Whether it is an operation that may be analysed."""
    return node.op == "call_function" and node not in facts.opaque


def _reads_units(node: Node, facts: Liveness) -> bool:
    """Whether its first argument has units, and no other depends on the batch."""
    args = args_of(node) if is_known(node, facts) else ()
    numbers = (each for part in args[1:] if isinstance(part, (list, tuple)) for each in part)
    return bool(args) and facts.has_units(args[0]) and not any(isinstance(each, Node) for each in numbers)


def is_layer(node: Node, facts: Liveness) -> bool:
    """Whether it is a linear layer or convolution whose parameters may be cut."""
    if node.target not in LAYERS or not _reads_units(node, facts) or not facts.is_sole(args_of(node)[1]):
        return False
    bias = argument(args_of(node), 2, None)
    weight = facts.params[facts.leaves[args_of(node)[1]]]
    return (bias is None or facts.is_sole(bias)) and node.meta["val"].ndim == weight.ndim


def is_norm(node: Node, facts: Liveness) -> bool:
    """Whether it is a normalisation over the batch whose parameters and buffers may be cut."""
    if node.target is not NORM or not _reads_units(node, facts):
        return False
    return all(each is None or facts.is_sole(each) for each in args_of(node)[1:5])


def is_unitwise(node: Node, facts: Liveness) -> bool:
    """Whether each of its units depends only on the same unit of its first argument."""
    if not _reads_units(node, facts):
        return False
    if node.target in POOLS:  # with three dimensions, dimension 0 is the channels
        return int(node.meta["val"].ndim) == 4
    if node.target is MEAN:
        rank = args_of(node)[0].meta["val"].ndim
        dims = args_of(node)[1]
        return bool(dims) and all(dim % rank >= 2 for dim in dims)
    if node.target is SLICE:
        return dimension(node) >= 2
    if node.target in PADS:
        return len(args_of(node)[1]) <= 2 * (int(node.meta["val"].ndim) - 2)
    return node.target in UNITWISE


def is_binary(node: Node, facts: Liveness) -> bool:
    """Whether it combines two values with the same units, or a value and a number."""
    if node.target not in BINARY or not is_known(node, facts):
        return False
    parts = [each for each in args_of(node)[:2] if isinstance(each, Node)]
    rank = node.meta["val"].ndim
    return bool(parts) and all(
        facts.has_units(each) and facts.units(each) == facts.units(node) and each.meta["val"].ndim == rank
        for each in parts
    )


def is_cat(node: Node, facts: Liveness) -> bool:
    """Whether it concatenates units."""
    if node.target is not CAT or not is_known(node, facts):
        return False
    return dimension(node) == 1 and all(map(facts.has_units, args_of(node)[0]))


def is_flatten(node: Node, facts: Liveness) -> bool:
    """Whether it flattens units and positions to features."""
    value = node.meta.get("val")
    source = args_of(node)[0] if args_of(node) else None
    if node.target not in FLATTENS or not is_known(node, facts) or not facts.has_units(source):
        return False
    return facts.has_units(node) and value is not None and value.ndim == 2


def is_slice_or_pad(node: Node, facts: Liveness) -> bool:
    """Whether it slices units, or pads them with zeros."""
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


def sources(node: Node, facts: Liveness) -> Tensor:
    """int64: for each unit of a slice or padding, the unit of its argument, or -1 for an added one."""
    count = facts.units(args_of(node)[0])
    if node.target is SLICE:
        start, stop, step = (argument(args_of(node), position, None) for position in (2, 3, 4))
        return torch.arange(count)[slice(start, stop, step)]
    before = args_of(node)[1][-2]
    found = torch.arange(facts.units(node)) - before
    return torch.where((found >= 0) & (found < count), found, -1)
