"""What a module does when called besides computing outputs, found by calling copies of it on a few examples."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import optree
import torch
from torch import Tensor, nn

from lthfunc.errors import UserError
from lthfunc.trees.global_rng import generators_used, seeded_generators
from lthfunc.trees.model import Model
from lthfunc.trees.module_attributes import MODULE_ATTRIBUTES, mutable_attributes, restored_attributes, user_modules
from lthfunc.trees.module_calls import call_without_restoring
from lthfunc.trees.module_errors import DtypeMismatchError, taking_inputs
from lthfunc.trees.ops import clone, in_dtype_of, same_bits
from lthfunc.trees.types import Buffers, Params

T = TypeVar("T")


class SideEffects(NamedTuple):
    """What a module does when called, besides computing its outputs.

    writes_input: whether it changes inputs in place. global_rngs: the global generators other than PyTorch's that it
    draws from. evaluates_randomly: whether it draws in evaluation mode. known: whether its code is the catalogue's.
    """

    writes_input: bool = False
    global_rngs: tuple[str, ...] = ()
    evaluates_randomly: bool = False
    known: bool = True


_TIDY = SideEffects()
_FOUND: weakref.WeakKeyDictionary[nn.Module, dict[Any, SideEffects]] = weakref.WeakKeyDictionary()
_SEED = 0


def side_effects_of(model: Model, x: Tensor) -> SideEffects:
    """The side effects of the module in its two modes on (scaled) inputs; remembered per input shape.

    Raises UserError for a module whose outputs depend on earlier calls: one that stores numbers, lists or tensors
    outside of buffers, draws from a generator of its own, or gains parameters, buffers or layers when called. What is
    written before it is read in each call is allowed.
    """
    if model.pure:
        return _TIDY
    known = _FOUND.setdefault(model.training, {})
    kind = tuple(x.shape[1:]), x.dtype
    if kind not in known:
        x = x.detach().cpu()
        training, evaluating = _called(model, model.training, x), _called(model, model.evaluating, x)
        known[kind] = SideEffects(
            training.writes_input or evaluating.writes_input,
            tuple(sorted({*training.global_rngs, *evaluating.global_rngs})),
            evaluating.evaluates_randomly,
            known=False,
        )
    return known[kind]


def in_either_dtype(call: Callable[[Params, Buffers], T], x: Tensor, params: Params, buffers: Buffers) -> T:
    """A call with these leaves or, where a module rejects the inputs x with them, with leaves in the inputs' dtype."""
    try:
        return call(params, buffers)
    except DtypeMismatchError:
        others = in_dtype_of(x, params, buffers)
        if others is None:
            raise
        return call(*others)


def _called(model: Model, module: nn.Module, x: Tensor) -> SideEffects:
    """One mode, with leaves in the module's dtype or, if it rejects the inputs with them, in the inputs'."""
    params, buffers = model.init(0)
    with taking_inputs(model.name, x.shape[1:], module):
        return in_either_dtype(lambda p, b: _called_with(p, b, model.name, module, x), x, params, buffers)


def _called_with(params: Params, buffers: Buffers, name: str, module: nn.Module, x: Tensor) -> SideEffects:
    """Call a copy with the same parameters, buffers and seeds on two inputs, each before and after the other."""
    module = copy.deepcopy(module)
    shape = _shape(module)

    def call(seed: int, x: Tensor) -> tuple[Any, Tensor, list[str], bool]:
        mine = clone((params, buffers, x))
        leaves = {**mine[0], **mine[1]}
        with seeded_generators(seed), torch.no_grad():
            before = torch.get_rng_state()
            outputs = call_without_restoring(module, leaves, (mine[2],))
            outputs = optree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, outputs)
            return outputs, mine[2], generators_used(seed), not torch.equal(before, torch.get_rng_state())

    other = x.flip(0) * 0.5 if x.is_floating_point() else x.flip(0)
    with restored_attributes(mutable_attributes(user_modules(module))):
        outputs, after, outside, drawn = call(_SEED, x)
        changed = _difference(shape, _shape(module))
        if changed:
            raise UserError(f"{name} changes {changed} in forward; make it in __init__ instead")
        first = _kept(module)
        between, *_ = call(_SEED, other)
        second = _kept(module)
        again, *_ = call(_SEED, x)
        third = _kept(module)
    fresh, *_ = call(_SEED, other)
    alike = _equal(outputs, again) and _equal(between, fresh)
    # What is stored of the last call only is allowed, unless the next one reads it.
    lasting = _difference(first, third) or _difference(second, _kept(module))
    if not alike:
        lasting = lasting or _difference(first, second)
    if lasting:
        raise UserError(
            f"{name} keeps {lasting} from call to call outside of buffers; use register_buffer, so "
            "that it is part of the state"
        )
    if not alike:
        raise UserError(
            f"{name} returns different outputs when called again with the same parameters, inputs and seeds: draw from "
            "torch's, NumPy's or Python's own generators, and store what lasts between calls in buffers"
        )
    return SideEffects(not _equal(after, x), tuple(outside), drawn or bool(outside))


def _shape(module: nn.Module) -> dict[str, Any]:
    """What a module consists of: the names of leaves and layers, and the number of hooks."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        where = f"{name}." if name else ""
        for kind, held in (("parameter", part._parameters), ("buffer", part._buffers), ("layer", part._modules)):
            found |= {f"the {kind} {where}{key}": () for key, leaf in held.items() if leaf is not None}
        found[f"the hooks of {name or type(part).__name__}"] = len(part._forward_hooks) + len(part._forward_pre_hooks)
        found[f"the mode of {name or type(part).__name__}"] = part.training
    return found


def _kept(module: nn.Module) -> dict[str, Any]:
    """What submodules store in plain attributes: numbers, text, tensors, generators, and containers of those."""
    return {
        f"{name}.{key}" if name else key: _value(value, 4)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in MODULE_ATTRIBUTES
    }


_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def _value(value: Any, depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if depth and type(value).__module__.startswith("numpy"):
        state = getattr(value, "bit_generator", None) or value
        found = getattr(state, "state", None) if not hasattr(state, "get_state") else state.get_state()
        return repr(found) if found is not None else repr(value)
    if depth and isinstance(value, Mapping):
        return {repr(key): _value(each, depth - 1) for key, each in value.items()}
    if depth and (isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque"):
        return [_value(each, depth - 1) for each in value]
    return ()  # any other object


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The first name whose values differ; "" if there is none."""
    for name in [*one, *(name for name in other if name not in one)]:
        if name not in one or name not in other or not _equal(one[name], other[name]):
            return name
    return ""


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return same_bits(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (one != one and other != other)
    if type(one) is not type(other):
        return False
    return bool(one == other) if isinstance(one, _PLAIN) else True  # nothing is known of other objects
