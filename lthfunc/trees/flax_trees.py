"""Trees to and from Flax and optax: nested dictionaries of NumPy arrays. JAX is not imported; its arrays are read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.printable import dtype_name, first_few
from lthfunc.trees.flax_layout import PARAMS, STATISTICS, FlaxLayout
from lthfunc.trees.ops import apply_masks, full_masks
from lthfunc.trees.types import Ticket, TrainState


class FlaxTrees(NamedTuple):
    """variables: {"params": …, "batch_stats": …}, as a module's `apply` takes them. masks: uint8, None for leaves that
    are not pruned, as jaxpruner keeps them in ``SparseState.masks`` (Lee et al. 2023).
    """

    variables: dict[str, Any]
    masks: dict[str, Any]


@public
def to_flax(ticket: Ticket | TrainState, layout: FlaxLayout) -> FlaxTrees:
    """A ticket, or a state, as dictionaries of NumPy arrays for Flax and jaxpruner.

    ticket: whose weights and masks are taken. layout: of the network (`flax_layout`). bfloat16 becomes float32, which
    NumPy has. Returns (variables, masks). Raises UserError where the ticket is of another network.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> state = lf.prune(density=0.5)(lf.init(model))
    >>> variables, masks = lf.to_flax(state, lf.flax_layout(model, {"": "Dense_0"}))
    >>> variables["params"]["Dense_0"]["kernel"].shape, masks["Dense_0"]["bias"]
    ((4, 2), None)
    """
    leaves = {**ticket.params, **ticket.buffers}
    found: dict[str, Any] = {}
    for name, place in layout.places.items():
        if name not in leaves:
            raise UserError(f"to_flax: ticket: {name!r} of {layout.model.name} is missing")
        _put(found, (place.collection, *place.path), _array(place.to(leaves[name])))
    return FlaxTrees({PARAMS: {}, **found}, to_flax_tree(ticket.masks, layout))


@public
def to_flax_tree(tree: Mapping[str, Tensor], layout: FlaxLayout) -> dict[str, Any]:
    """A tree of leaves by parameter name, such as gradients, moments or masks, as Flax's nested dictionary.

    tree: whose leaves have the parameters' shapes. layout: of the network (`flax_layout`). Returns NumPy arrays, bool
    as uint8; None for parameters that the tree lacks. Raises UserError for a name that is no parameter, and
    for a leaf of another shape.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> lf.to_flax_tree({"weight": torch.ones(2, 4)}, lf.flax_layout(model))["kernel"].shape
    (4, 2)
    """
    places = {name: place for name, place in layout.places.items() if place.collection == PARAMS}
    params = dict(layout.model.evaluating.named_parameters())
    for name, leaf in tree.items():
        if name not in places:
            raise UserError(f"to_flax_tree: tree: {name!r} is not a parameter ({first_few(list(places))})")
        if leaf.shape != params[name].shape:
            shapes = f"{tuple(leaf.shape)} (expected {tuple(params[name].shape)})"
            raise UserError(f"to_flax_tree: tree: {name!r} has shape {shapes}")
    found: dict[str, Any] = {}
    for name, place in places.items():
        _put(found, place.path, _array(place.to(tree[name])) if name in tree else None)
    return found


@public
def from_flax(variables: Mapping[str, Any], layout: FlaxLayout, masks: Mapping[str, Any] | None = None) -> Ticket:
    """The ticket of a Flax network: the way back from `to_flax`.

    variables: {"params": …, "batch_stats": …}, or the params alone; arrays of NumPy or JAX. layout: of the network
    here (`flax_layout`). masks: of jaxpruner: 1 where a weight remains, None for leaves that are not pruned, packed to
    bits or not; without them nothing is pruned. Buffers that Flax doesn't have, such as the number of batches, are the
    model's own. Returns the ticket, whose pruned weights are zero. Raises UserError for leaves that are missing, of
    another shape, whole numbers or not the layout's, and for a mask of a parameter that the model doesn't prune.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> layout, state = lf.flax_layout(model), lf.prune(density=0.5)(lf.init(model))
    >>> variables, masks = lf.to_flax(state, layout)
    >>> lf.same_bits(lf.from_flax(variables, layout, masks).params, state.params)
    True
    """
    whole = variables if PARAMS in variables else {PARAMS: variables}
    model = layout.model
    params, buffers = model.init(0)
    found = _leaves("variables", whole, layout, (PARAMS, STATISTICS))
    missing = [name for name in layout.places if name not in found]
    if missing:
        place = layout.places[missing[0]]
        raise UserError(f"from_flax: variables: {'/'.join((place.collection, *place.path))} is missing")
    for name, leaf in params.items():
        if leaf.is_floating_point() and not found[name].is_floating_point():
            where = "/".join(layout.places[name].path)
            raise UserError(f"from_flax: variables: {where} is {dtype_name(found[name].dtype)} (expected floats)")
    kept = full_masks(params, model.prunable)
    if masks is not None:
        given = _leaves("masks", {PARAMS: masks}, layout, (PARAMS,), masked=True)
        for name in given:
            if name not in kept:
                raise UserError(f"from_flax: masks: {name} has one, but {model.name} doesn't prune it (prunable=[…])")
        kept |= given
    values = {name: found.get(name, leaf) for name, leaf in params.items()}
    rest = {name: found.get(name, leaf) for name, leaf in buffers.items()}
    return Ticket(apply_masks(values, kept), rest, kept)


@public
def from_flax_tree(tree: Mapping[str, Any], layout: FlaxLayout) -> dict[str, Tensor]:
    """Flax's nested dictionary of a leaf for each parameter, such as gradients or moments, as a tree by name.

    tree: arrays of NumPy or JAX; parameters that it lacks, or has as None, are left out. layout: of the network
    (`flax_layout`). Returns the tree. Raises UserError for a leaf of another shape, or that is not the layout's.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> layout, moments = lf.flax_layout(model), {"weight": torch.randn(2, 4)}
    >>> lf.same_bits(lf.from_flax_tree(lf.to_flax_tree(moments, layout), layout), moments)
    True
    """
    return _leaves("tree", {PARAMS: tree}, layout, (PARAMS,))


def _leaves(
    argument: str, tree: Mapping[str, Any], layout: FlaxLayout, collections: tuple[str, ...], *, masked: bool = False
) -> dict[str, Tensor]:
    """The leaves of nested dictionaries by name here, in module order. masked: as bool."""
    known = {(place.collection, *place.path): name for name, place in layout.places.items()}
    module = layout.model.training
    shapes = dict((*module.named_parameters(), *module.named_buffers()))
    found: dict[str, Tensor] = {}
    for path, value in _flat(tree):
        where = "/".join(path[1:] if collections == (PARAMS,) else path)
        if path not in known:
            if path[0] in collections and value is not None:
                raise UserError(f"{argument}: the layout has no place for {where}; names={{layer here: path there}}")
            continue
        if value is None:
            continue
        name = known[path]
        place, like = layout.places[name], shapes[name]
        wanted = tuple(place.to(like).shape)
        leaf = _tensor(argument, where, value)
        if masked and tuple(leaf.shape) != wanted:
            leaf = _unpacked(leaf, wanted)
        if tuple(leaf.shape) != wanted:
            raise UserError(f"{argument}: {where} has shape {tuple(leaf.shape)} (expected {wanted})")
        if masked and not ((leaf == 0) | (leaf == 1)).all():
            raise UserError(f"{argument}: {where} is no mask: it holds other numbers than 0 and 1")
        leaf = place.back(leaf)
        found[name] = (leaf.bool() if masked else leaf).clone(memory_format=torch.contiguous_format)
    return {name: found[name] for name in layout.places if name in found}


def _unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask that jaxpruner has packed to bits (``use_packed_masks``); any other as it is."""
    size = int(np.prod(shape))
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (-(-size // 8),):
        return bits
    return torch.from_numpy(np.unpackbits(bits.numpy())[:size].reshape(shape))


def _flat(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, Mapping):
        return [(path, tree)]
    return [each for name, part in tree.items() for each in _flat(part, (*path, str(name)))]


def _put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _array(leaf: Tensor) -> Any:
    """A NumPy array with memory of its own; bool as uint8, bfloat16 as float32."""
    leaf = leaf.detach().cpu()
    leaf = leaf.to(torch.uint8) if leaf.dtype == torch.bool else leaf.float() if leaf.dtype == torch.bfloat16 else leaf
    return np.array(leaf.numpy(), order="C")


def _tensor(argument: str, where: str, value: Any) -> Tensor:
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":  # JAX's, which PyTorch doesn't read from NumPy
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{argument}: {where} is a {type(value).__name__}, not an array of numbers")
    return torch.from_numpy(np.array(array, order="C"))
