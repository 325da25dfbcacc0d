"""Two networks with their hidden units in the same order, and masks that follow (Ainsworth et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.sparsify.dependencies import INPUT, Dependencies
from lthfunc.trees.types import Masks, Params

#: Rounds through all layers, at most; a few are enough.
_ROUNDS = 100
#: What a normalisation has for each of its features.
_OF_NORMS = ("weight", "bias", "running_mean", "running_var")


class Hidden(NamedTuple):
    """A layer whose units may change places. features: int64 (units, k), of the reader, by unit."""

    source: str
    reader: str
    features: Tensor


def hidden_layers(found: Dependencies) -> list[Hidden]:
    """The layers of a chain, each read by the next one alone. Raises UserError for other networks."""
    layers = [name for name in found.shown if name != INPUT]
    hidden = []
    for source in layers:
        readers = [name for name in layers if (feeds := found.feeds.get((source, name))) is not None and feeds.any()]
        if found.shown[source].all() and not readers:
            continue  # the output layer
        others = [name for name in layers if name != source and _feeds(found, name, readers)]
        # Units of a grouped convolution read the inputs of their own group, and cannot change to another.
        grouped = any(found.groups.get(name, 1) > 1 for name in (source, *readers))
        if len(readers) != 1 or others or found.shown[source].any() or grouped:
            raise UserError(
                f"align_units: {source} is not read by one other layer alone; layers must follow one another, without "
                "residual connections, concatenations or groups"
            )
        feeds = found.feeds[source, readers[0]]
        counts = feeds.sum(1)
        if bool((counts != counts[0]).any()) or bool((feeds.sum(0) != 1).any()):
            raise UserError(f"align_units: {readers[0]} reads mixtures of the units of {source}")
        hidden.append(Hidden(source, readers[0], feeds.nonzero()[:, 1].view(len(feeds), -1)))
    return hidden


def _feeds(found: Dependencies, name: str, readers: list[str]) -> bool:
    return any((feeds := found.feeds.get((name, reader))) is not None and bool(feeds.any()) for reader in readers)


@public
def align_units(params: Params, other: Params, found: Dependencies) -> dict[str, Tensor]:
    """The places that hidden units must take for weights to come as close as they can to another network's.

    Weight matching (Ainsworth et al. 2023, alg. 1), layer by layer until nothing changes; each layer's places are found
    exactly, by linear assignment. params, other: of one architecture. found: its `dependencies`. Returns for each
    hidden layer an int64 (units,): which of its units comes first, second and so on, as `permute_units` takes it.
    Raises UserError for networks whose layers don't follow one another.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> found, params = lf.dependencies(model, (4,)), lf.init(model).params
    >>> other = lf.permute_units(params, {"0.weight": torch.tensor([2, 0, 1])}, found)
    >>> lf.align_units(params, other, found)
    {'0.weight': tensor([2, 0, 1])}
    """
    from scipy.optimize import linear_sum_assignment

    layers = hidden_layers(found)
    names = {*found.shown, *found.beside.values()} - {INPUT}
    ours, theirs = ({name: tree[name].detach().cpu().double() for name in names} for tree in (params, other))
    order = {each.source: torch.arange(len(each.features)) for each in layers}
    for _ in range(_ROUNDS):
        before = dict(order)
        for each in layers:
            moved = permute_units(ours, {name: places for name, places in order.items() if name != each.source}, found)
            pairs = zip(_of_units(moved, each, found), _of_units(theirs, each, found), strict=True)
            closeness = sum((b @ a.T for a, b in pairs), torch.zeros(()))
            order[each.source] = torch.from_numpy(linear_sum_assignment(closeness.numpy(), maximize=True)[1]).long()
        if all(torch.equal(order[name], before[name]) for name in order):
            break
    return order


def _of_units(params: Params, layer: Hidden, found: Dependencies) -> Iterator[Tensor]:
    """What belongs to each unit of a layer, as rows: what it reads, its bias, and what reads it."""
    units = len(layer.features)
    yield params[layer.source].reshape(units, -1)
    if layer.source in found.beside:
        yield params[found.beside[layer.source]].reshape(units, -1)
    yield params[layer.reader][:, layer.features].transpose(0, 1).reshape(units, -1)


@public
def permute_units(tree: Params | Masks, order: dict[str, Tensor], found: Dependencies) -> Params:
    """Weights, masks or buffers with hidden units in another order; the function of a network stays the same.

    tree: params, masks or buffers of a network. order: for some of its hidden layers, which units come first, second
    and so on, int64 (units,), as `align_units` finds it. found: the network's `dependencies`. Biases move with their
    units, and so do the parameters and running statistics of batch normalisation; of a network with such statistics the
    buffers must be permuted, too. Returns the tree. Raises UserError for networks whose layers don't follow one
    another, or have parameters that nothing is known about, and for an order that is not one of a hidden layer's units.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)))
    >>> masks = {"0.weight": torch.tensor([[True], [False]]), "1.weight": torch.tensor([[True, False]])}
    >>> lf.permute_units(masks, {"0.weight": torch.tensor([1, 0])}, lf.dependencies(model, (1,)))["1.weight"]
    tensor([[False,  True]])
    """
    layers = hidden_layers(found)
    _check_order(order, layers)
    _check_known(tree, found)
    new = dict(tree)
    for layer in layers:
        if layer.source not in order:
            continue
        places = order[layer.source]
        for name in (layer.source, found.beside.get(layer.source)):
            if name is not None and name in new:
                new[name] = new[name][places.to(new[name].device)]
        if layer.reader in new:
            reader, moved = new[layer.reader], _moved(layer.features, places)
            new[layer.reader] = reader[:, moved.to(reader.device)]
        for norm, feeds in _normalised(layer.source, found):
            for name in _leaves_of(norm, new):
                new[name] = new[name][_moved(feeds, places).to(new[name].device)]
    return new


def _moved(features: Tensor, places: Tensor) -> Tensor:
    """Which feature of a reader comes first, second and so on. features: int64 (units, k), of each unit."""
    moved = torch.empty(features.numel(), dtype=torch.long)
    moved[features.flatten()] = features[places.cpu()].flatten()
    return moved


def _normalised(source: str, found: Dependencies) -> Iterator[tuple[str, Tensor]]:
    """The normalisations of a layer's units, by their weights, and the features of each unit there."""
    for (other, reader), feeds in found.feeds.items():
        if other == source and reader not in found.shown and bool(feeds.any()):
            yield reader, feeds.nonzero()[:, 1].view(len(feeds), -1)


def _leaves_of(norm: str, tree: Params) -> list[str]:
    """What of a normalisation is in a tree, a number for each feature."""
    path = norm.removesuffix("weight")
    return [name for own in _OF_NORMS if (name := path + own) in tree]


def _check_order(order: dict[str, Tensor], layers: list[Hidden]) -> None:
    units = {each.source: len(each.features) for each in layers}
    for name, places in order.items():
        if name not in units:
            raise invalid("permute_units: order", name, f"a hidden layer: {', '.join(units)}")
        if sorted(places.tolist()) != list(range(units[name])):
            raise invalid(f"permute_units: order[{name!r}]", places.tolist(), f"each of 0 to {units[name] - 1} once")


def _check_known(tree: Params, found: Dependencies) -> None:
    """Raise UserError for a leaf that may hold a number for each unit, where it is not known which."""
    norms = {reader for _, reader in found.feeds if reader not in found.shown}
    known = {*found.shown, *found.beside.values(), *(name for norm in norms for name in _leaves_of(norm, tree))}
    for name, leaf in tree.items():
        if name not in known and leaf.numel() > 1:
            raise UserError(
                f"permute_units: {name} is no weight, bias or batch normalisation's, and may belong to units"
            )
