"""Which units feed which inputs, found by sending marks through the network; and networks without dead units.

A unit is an output of a layer with prunable weights: a neuron, or a channel. A unit that lost all its weights is dead;
one whose readers all lost their weights for it is unread. Both can go, and with them the biases and normalisation
parameters that only they need.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.trees.model import Model, example_input
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.module_errors import taking_inputs
from lthfunc.trees.ops import apply_masks, to_device
from lthfunc.trees.prunable import CONVOLUTIONS, TRANSPOSED
from lthfunc.trees.types import Masks, TrainState

#: Stands for the network's input in place of a layer's name.
INPUT = ""


class Dependencies(NamedTuple):
    """feeds: (source weight, reader) -> bool (units of the source, features of the reader).

    Readers are prunable weights and normalisations, by the names of their weights, with or without them; a source is a
    prunable weight or INPUT. shown: source -> bool (units,), True where the outputs depend on the unit without a reader
    in between. groups: of convolutions. beside: weight -> the bias of its layer.
    """

    feeds: dict[tuple[str, str], Tensor]
    shown: dict[str, Tensor]
    groups: dict[str, int]
    beside: dict[str, str]


@public
def dependencies(model: Model, shape: tuple[int, ...]) -> Dependencies:
    """Trace which units feed which inputs, with one forward pass per layer and as many examples as the layer has units.

    Each unit of a layer is marked with NaN, which every operation passes on to all that it computes from it. The answer
    is exact where layers mix no more units than they must; where something mixes all of them (attention), each unit
    counts as read by everything behind it. shape: of one input of the model. Returns what `without_dead_units` takes.
    Raises UserError for prunable weights of other layers than linear and convolution layers, and of transposed
    convolutions.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> lf.dependencies(model, (4,)).feeds["0.weight", "2.weight"].sum()
    tensor(3)
    """
    module = copy.deepcopy(model.evaluating)
    params, buffers = ({name: _single(leaf) for name, leaf in tree.items()} for tree in model.init(0))
    layers = {name: _layer_of(module, name) for name in model.prunable}
    norms: dict[str, nn.Module] = {
        f"{name}.weight": part
        for name, part in module.named_modules()
        if isinstance(part, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))
    }
    found = Dependencies({}, {}, {}, {})
    for name, layer in layers.items():
        if isinstance(layer, nn.modules.conv._ConvNd):
            found.groups[name] = layer.groups
        bias = f"{name.rpartition('.')[0]}.bias"
        if bias in params:
            found.beside[name] = bias
    for source in (INPUT, *layers):
        if model.tokens and not source:  # numbers of characters, which an embedding turns into units
            continue
        units = len(params[source]) if source else 1
        with torch.no_grad(), _marking(source, layers, norms, found):
            x = example_input(model, shape, units) if source else torch.full((units, *shape), torch.nan)
            with taking_inputs(model.name, shape, module):
                outputs = functional_call(module, {**params, **buffers}, (x,))
        found.shown[source] = torch.isnan(outputs).flatten(1).any(1)
    return found


def _single(leaf: Tensor) -> Tensor:
    """In the type of the inputs that marks are sent by."""
    return leaf.float() if leaf.is_floating_point() else leaf


def _layer_of(module: nn.Module, name: str) -> nn.Module:
    """The linear or convolution layer that a weight belongs to."""
    owner, _, leaf = name.rpartition(".")
    layer = module.get_submodule(owner) if "parametrizations" not in owner else None
    if leaf != "weight" or not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        raise UserError(
            f"structure: units prunes linear and convolution layers, but {name} belongs to neither; exclude it with "
            "never_prune"
        )
    if isinstance(layer, TRANSPOSED):
        raise UserError(
            f"structure: units takes no transposed convolutions, such as that of {name}; exclude it with never_prune"
        )
    return layer


@contextmanager
def _marking(
    source: str, layers: dict[str, nn.Module], norms: dict[str, nn.Module], found: Dependencies
) -> Iterator[None]:
    """Hooks for one pass: the source's outputs are marked, readers record marks and pass none on."""
    with ExitStack() as hooks:
        for name, reader in {**layers, **norms}.items():
            hooks.enter_context(reader.register_forward_pre_hook(_looker(source, name, found)))
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(_mark if name == source else _clean))
        yield


def _mark(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """Mark unit i of example i."""
    units, last = torch.arange(len(output)), isinstance(layer, (nn.Linear, nn.Embedding))
    marked = torch.nan_to_num(output).clone()
    (marked.movedim(-1, 1) if last else marked)[units, units] = torch.nan
    return marked


def _clean(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return torch.nan_to_num(output)


def _looker(source: str, name: str, found: Dependencies) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def look(reader: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        marks = torch.isnan(inputs[0].float())
        if isinstance(reader, nn.Linear):
            marks = marks.movedim(-1, 1)
        marks = marks.reshape(*marks.shape[:2], -1).any(2)
        before = found.feeds.get((source, name))
        found.feeds[source, name] = marks if before is None else before | marks

    return look


@public
def without_dead_units(state: TrainState, found: Dependencies) -> TrainState:
    """Prune the weights that read dead units or feed unread ones, repeatedly until there are none. Returns the state.

    Biases and normalisation parameters of such units become zero; nothing depends on them, so training leaves them at
    zero. A dead unit may have contributed a constant (its bias), which is lost. found: the `dependencies` of the
    state's network. Raises UserError where they are another network's.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> state = lf.init(model)
    >>> mask = torch.tensor([True, True, False])[:, None].expand(3, 4)  # the third unit is dead
    >>> state = state._replace(masks={**state.masks, "0.weight": mask})
    >>> lf.layer_counts(lf.without_dead_units(state, lf.dependencies(model, (4,))).masks)["2.weight"]
    Count(kept=4, total=6)
    """
    for name, shown in found.shown.items():
        if name and (name not in state.masks or len(state.masks[name]) != len(shown)):
            raise UserError(f"found: belongs to another network, in which {name!r} has {len(shown)} units")
    device = state.step.device
    found = found._replace(feeds=to_device(found.feeds, device), shown=to_device(found.shown, device))
    masks = dict(state.masks)
    while True:
        fewer = _reduced(masks, found)
        if all(torch.equal(fewer[name], masks[name]) for name in masks):
            break
        masks = fewer
    params = apply_masks(state.params, masks)
    dead = {name: ~mask.flatten(1).any(1) for name, mask in masks.items()}
    for name, bias in found.beside.items():
        params[bias] = torch.where(dead[name] & ~found.shown[name], 0, params[bias])
    for reader in {reader for _, reader in found.feeds} - set(masks):
        gone = _fed_by_dead_alone(reader, dead, found)
        for leaf in (reader, f"{reader.rpartition('.')[0]}.bias"):
            if leaf in params:
                params[leaf] = torch.where(gone, 0, params[leaf])
    return state._replace(params=params, masks=masks, opt=())


def _reduced(masks: Masks, found: Dependencies) -> Masks:
    new = dict(masks)
    dead = {name: ~mask.flatten(1).any(1) for name, mask in masks.items()}
    for reader in masks:
        if any(name == reader for _, name in found.feeds):
            gone = _fed_by_dead_alone(reader, dead, found)
            new[reader] = new[reader] & ~_columns(gone, masks[reader], found.groups.get(reader, 1))
    for source, mask in masks.items():
        read = found.shown[source].clone()
        for (other, reader), feeds in found.feeds.items():
            if other == source and reader in masks:
                used = _used(new[reader], found.groups.get(reader, 1))
                read |= (feeds & used).any(1)
        new[source] = new[source] & read.view(-1, *(1,) * (mask.ndim - 1))
    return new


def _fed_by_dead_alone(reader: str, dead: dict[str, Tensor], found: Dependencies) -> Tensor:
    """Features that have sources, all of them dead."""
    feeding = {source: feeds for (source, name), feeds in found.feeds.items() if name == reader}
    living = [feeds if source == INPUT else feeds & ~dead[source][:, None] for source, feeds in feeding.items()]
    fed, alive = (torch.stack([each.any(0) for each in tables]).any(0) for tables in (feeding.values(), living))
    return fed & ~alive


def _columns(features: Tensor, mask: Tensor, groups: int) -> Tensor:
    """The weights that read these features: bool, broadcastable to the mask."""
    each = features.view(groups, -1).repeat_interleave(len(mask) // groups, 0)
    return each.view(*each.shape, *(1,) * (mask.ndim - 2))


def _used(mask: Tensor, groups: int) -> Tensor:
    """Features that some remaining weight reads."""
    return mask.view(*mask.shape[:2], -1).any(2).view(groups, len(mask) // groups, -1).any(1).flatten()


@public
def dead_units(masks: Masks) -> dict[str, int]:
    """The number of units of each layer, by `masks`, that have no weight left.

    >>> lf.dead_units({"fc": torch.tensor([[True, False], [False, False]])})
    {'fc': 1}
    """
    return {name: int((~mask.flatten(1).any(1)).sum()) for name, mask in masks.items()}
