"""Tickets to and from other networks: plain modules, other heads, modules pruned by PyTorch, files of weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.prune import BasePruningMethod

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.printable import dtype_name, first_few
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.model import Model, from_module
from lthfunc.trees.module_attributes import copy_module
from lthfunc.trees.ops import apply_masks, full_masks
from lthfunc.trees.prunable import check_gradient_hooks
from lthfunc.trees.types import Buffers, Params, Ticket


@public
def to_module(ticket: Ticket, model: Model) -> nn.Module:
    """A plain module of the model's kind with the ticket's masked weights, in evaluation mode.

    Its parameters can be trained (after `.train()`), but nothing keeps pruned weights at zero. Parameters that were
    frozen when the model was made are buffers. `from_pruned(module, zeros=True)` is the way back. Raises UserError
    where the ticket is of another network.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> lf.to_module(lf.ticket(lf.prune(density=0.5)(lf.init(model))), model).weight.count_nonzero()
    tensor(4)
    """
    module = copy.deepcopy(model.evaluating)
    with torch.no_grad():
        values = {**apply_masks(ticket.params, ticket.masks), **ticket.buffers}
        for name, leaf in (*module.named_parameters(), *module.named_buffers()):
            leaf.copy_(values[name])
    for leaf in module.parameters():
        leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())
    return module


@public
def with_new_head(ticket: Ticket, model: Model, seed: int = 0) -> Ticket:
    """The ticket for a model that differs in its last layer or in others.

    Leaves whose shape differs are drawn anew, dense. seed: what they are drawn from. Raises UserError where no pruned
    weight of the ticket fits the model.

    >>> old = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> new = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    >>> ticket = lf.ticket(lf.prune(density=0.5)(lf.init(lf.from_module(old))))
    >>> lf.with_new_head(ticket, lf.from_module(new), seed=1).params["1.weight"].shape
    torch.Size([5, 3])
    """
    params, buffers = model.init(seed)
    common = [name for name in params if name in ticket.params and ticket.params[name].shape == params[name].shape]
    if not any(name in ticket.masks for name in common):
        raise UserError("ticket: none of its pruned weights fits the network")
    masks = _fitting(full_masks(params, model.prunable), ticket.masks)
    return Ticket(apply_masks(_fitting(params, ticket.params), masks), _fitting(buffers, ticket.buffers), masks)


def _fitting(fresh: Params, known: Params) -> Params:
    """The known leaves where they have the shapes of the fresh ones, and those elsewhere."""
    same = {name for name, leaf in fresh.items() if name in known and known[name].shape == leaf.shape}
    return {name: known[name] if name in same else leaf for name, leaf in fresh.items()}


@public
def from_pruned(module: nn.Module, *, zeros: bool = False, **given: Any) -> tuple[Model, Ticket]:
    """The model and the ticket of a module with masks of `torch.nn.utils.prune`; the module stays as it is.

    zeros: whether weights that are zero count as pruned where the module has no mask for them. given: further arguments
    of `from_module`. Returns (model, ticket). Raises UserError where nothing in the module is pruned.

    >>> net = nn.Linear(4, 2)
    >>> _ = torch.nn.utils.prune.l1_unstructured(net, "weight", amount=0.5)
    >>> model, ticket = lf.from_pruned(net)
    >>> lf.count(ticket.masks)
    Count(kept=4, total=8)
    """
    check_gradient_hooks(module)
    plain = copy_module(module)
    masks: dict[str, Tensor] = {}
    for name, part in plain.named_modules():
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, BasePruningMethod):
                leaf = hook._tensor_name
                masks[f"{name}.{leaf}" if name else leaf] = getattr(part, f"{leaf}_mask").bool()
                prune.remove(part, leaf)
    if not masks and not zeros:
        raise UserError(
            f"{type(module).__name__}: nothing in it is pruned by torch.nn.utils.prune; zeros=True counts weights "
            "that are zero as pruned"
        )
    model = from_module(plain, **{"prunable": list(masks), **given})
    params = {name: leaf.detach().clone() for name, leaf in plain.named_parameters()}
    buffers = {name: leaf.detach().clone() for name, leaf in plain.named_buffers()}
    found = {name: masks[name] if name in masks else (params[name] != 0) | (not zeros) for name in model.prunable}
    return model, Ticket(apply_masks(params, found), buffers, found)


def with_initial_values(model: Model, values: Mapping[str, Tensor], *, trained: bool = False) -> Model:
    """The model with these initial values, whatever the seed; leaves whose shape differs are drawn from the seed.

    trained: the values are those of a whole trained network, so no shape may differ.

    Raises UserError where a leaf is missing, or fewer than half of the weights match. What is drawn or left out is the
    model's `note`.
    """
    params = dict(model.evaluating.named_parameters())
    known = first_names(model.evaluating)
    unexpected = [name for name in values if name.removesuffix("_orig").removesuffix("_mask") not in known]
    values = _by_first_names(known, values)
    kept = model.evaluating.state_dict().keys()  # a buffer that no state dict has comes from the module
    leaves = {**params, **dict(model.evaluating.named_buffers())}
    leaves = {name: leaf for name, leaf in leaves.items() if name in values or name in kept}
    missing = [name for name in leaves if name not in values]
    others = [name for name, leaf in leaves.items() if name in values and values[name].shape != leaf.shape]
    fitting = leaves.keys() - {*missing, *others}
    most_differ = 2 * sum(params[name].numel() for name in fitting & params.keys()) < sum(
        leaf.numel() for leaf in params.values()
    )
    if missing or most_differ or (trained and others):
        shapes = [f"{name} {tuple(values[name].shape)} instead of {tuple(leaves[name].shape)}" for name in others]
        found = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        parts = "; ".join(f"{what}: {first_few(names)}" for what, names in found if names)
        raise UserError(f"weights: does not fit the network {model.name} ({parts})")
    _check_values({name: values[name] for name in fitting}, leaves, set(params))
    said = (
        ("of another shape in the file, so drawn from the seed", others),
        ("not in the network, so left out", unexpected),
    )

    def init(seed: int) -> tuple[Params, Buffers]:
        params, buffers = (
            {name: values[name].to(leaf.dtype).clone() if name in fitting else leaf for name, leaf in tree.items()}
            for tree in model.init(seed)
        )
        return params, buffers

    note = "; ".join(f"{what}: {first_few(names)}" for what, names in said if names)
    return model._replace(init=init, redraw=model.init, note=note and f"weights: {note}")


def _check_values(values: Mapping[str, Tensor], leaves: Mapping[str, Tensor], params: set[str]) -> None:
    """Raise UserError for values that would change in the network's dtype, or cannot be trained."""
    for name, value in values.items():
        leaf = leaves[name]
        if not leaf.is_floating_point():
            continue
        if not value.is_floating_point():
            raise UserError(
                f"weights: {name} is {dtype_name(value.dtype)} in the file, but floating-point in the network; save "
                "quantised values as floats"
            )
        if name in params and not value.to(leaf.dtype).isfinite().all():
            raise UserError(f"weights: {name} holds values in the file that are not finite as {dtype_name(leaf.dtype)}")


def _by_first_names(known: Mapping[str, str], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict's values by the names that trees use; pairs of torch.nn.utils.prune are multiplied."""
    plain = dict(values)
    for name in [name.removesuffix("_orig") for name in values if name.endswith("_orig")]:
        if name not in values and f"{name}_mask" in values:
            plain[name] = values[f"{name}_orig"] * values[f"{name}_mask"]
    for name, first in known.items():
        if name in plain:
            plain.setdefault(first, plain[name])
    return plain
