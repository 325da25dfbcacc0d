"""Where each tensor of a network lies in the dictionaries of Flax, and in which order of dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid, unknown
from lthfunc.trees.leaf_names import first_names
from lthfunc.trees.model import Model
from lthfunc.trees.prunable import CONVOLUTIONS, NORMS, RECURRENT

PARAMS, STATISTICS = "params", "batch_stats"
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class FlaxPlace(NamedTuple):
    """Where a tensor lies. collection: "params" or "batch_stats". to, back: change its order of dimensions."""

    collection: str
    path: tuple[str, ...]
    to: Callable[[Tensor], Tensor]
    back: Callable[[Tensor], Tensor]


class FlaxLayout(NamedTuple):
    """The places of a network's tensors in Flax, by their names here (`flax_layout`). model: the network."""

    model: Model
    places: dict[str, FlaxPlace]


@public
def flax_layout(
    model: Model, names: Mapping[str, str] | None = None, flattened: Mapping[str, tuple[int, ...]] | None = None
) -> FlaxLayout:
    """The places of a network's parameters and buffers in the dictionaries of Flax (linen, or pure ones of nnx).

    A layer's name is a path: what is ``block.0.conv`` here is ``["block"]["0"]["conv"]`` there. A weight is the
    `kernel`, with its dimensions in Flax's order ((in, out) of linear layers, (height, width, in, out) of
    convolutions), an `embedding`, or the `scale` of a normalisation, whose running statistics are `batch_stats`.

    names: layers here -> their paths there, with "/" between parts, where they differ (``{"fc1": "Dense_0"}``).
    flattened: linear layers -> (channels, height, width), the shape here of the images that are flattened before them,
    whose channels come last in Flax. Returns the layout, for `to_flax`, `from_flax` and their trees. Raises UserError
    for a layer that isn't there, and for one that Flax builds in another way: recurrent, attention and parametrised
    ones, and transposed convolutions in groups.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> lf.flax_layout(model, {"0": "Dense_0", "2": "Dense_1"}).places["2.weight"].path
    ('Dense_1', 'kernel')
    """
    names, flattened = names or {}, flattened or {}
    layers = dict(model.training.named_modules())
    for argument, given in (("names", names), ("flattened", flattened)):
        for name in given:
            if name not in layers:
                raise unknown(f"flax_layout: {argument}", name, [each for each in layers if each])
    places: dict[str, FlaxPlace] = {}
    taken: dict[tuple[str, ...], str] = {}
    for name in dict.fromkeys(first_names(model.training).values()):
        owner, _, leaf = name.rpartition(".")
        found = _place(layers[owner], owner, leaf, flattened.get(owner))
        if found is None:
            continue
        path = (*_path(owner, names), *found.path)
        if (other := taken.setdefault((found.collection, *path), name)) != name:
            raise UserError(f"flax_layout: names: {other} and {name} would both be {'/'.join(path)}")
        places[name] = found._replace(path=path)
    return FlaxLayout(model, places)


def _path(owner: str, names: Mapping[str, str]) -> tuple[str, ...]:
    """The path of a layer: of the longest part of its name that has one, and the rest of the name."""
    parts = owner.split(".") if owner else []
    for length in range(len(parts), -1, -1):  # "" is the whole module
        if (given := names.get(".".join(parts[:length]))) is not None:
            return (*given.split("/"), *parts[length:])
    return tuple(parts)


def _place(layer: nn.Module, owner: str, leaf: str, image: tuple[int, ...] | None) -> FlaxPlace | None:
    """The place of a tensor of a layer, its path without the layer's; None where Flax has nothing like it."""
    where = f"{owner} ({type(layer).__name__})" if owner else type(layer).__name__
    others = (*RECURRENT, nn.MultiheadAttention, nn.Bilinear)
    if isinstance(layer, others) or "parametrizations" in f".{owner}.".split("."):
        raise UserError(f"flax_layout: Flax builds {where} in another way; convert its tensors by hand")
    if image is not None and not isinstance(layer, nn.Linear):
        raise invalid("flax_layout: flattened", where, "linear layers")
    if leaf == "weight" and (moves := _moves(layer, where, image)) is not None:
        return FlaxPlace(PARAMS, ("kernel",), *moves)
    if leaf == "weight" and isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return _same(PARAMS, "embedding")
    if isinstance(layer, NORMS):
        if leaf in ("weight", "bias") and len(getattr(layer, "normalized_shape", ())) > 1:
            raise UserError(f"flax_layout: Flax builds {where} in another way; convert its tensors by hand")
        statistics = {"running_mean": "mean", "running_var": "var"}
        if leaf in statistics:
            return _same(STATISTICS, statistics[leaf])
        return None if leaf == "num_batches_tracked" else _same(PARAMS, {"weight": "scale"}.get(leaf, leaf))
    return _same(PARAMS, leaf) if leaf in layer._parameters or leaf in ("weight", "bias") else None


def _same(collection: str, name: str) -> FlaxPlace:
    return FlaxPlace(collection, (name,), lambda leaf: leaf, lambda leaf: leaf)


def _moves(layer: nn.Module, where: str, image: tuple[int, ...] | None) -> tuple[Any, Any] | None:
    """How a weight becomes a kernel, and back; None for a layer that has none."""
    if isinstance(layer, nn.Linear):
        if image is None:
            return (lambda leaf: leaf.T), (lambda leaf: leaf.T)
        if math.prod(image) != layer.in_features:
            raise invalid("flax_layout: flattened", image, f"a shape of {layer.in_features} numbers for {where}")
        return _flattened(image)
    if isinstance(layer, _TRANSPOSED):
        if layer.groups > 1:
            raise UserError(f"flax_layout: Flax has no transposed convolutions in groups, as {where} is")
        space = tuple(range(layer.weight.ndim - 2))
        # PyTorch turns the kernel round, Flax doesn't.
        return (lambda leaf: leaf.permute(*(2 + each for each in space), 0, 1).flip(space)), (
            lambda leaf: leaf.flip(space).permute(-2, -1, *space)
        )
    if isinstance(layer, CONVOLUTIONS):
        dims = range(layer.weight.ndim - 2)
        return (lambda leaf: leaf.permute(*(2 + each for each in dims), 1, 0)), (
            lambda leaf: leaf.permute(-1, -2, *dims)
        )
    return None


def _flattened(image: tuple[int, ...]) -> tuple[Any, Any]:
    """Of a linear layer behind flattened images, whose channels are first here and last there."""
    channels, *space = image
    dims = range(len(space))

    def to(leaf: Tensor) -> Tensor:
        return leaf.view(-1, *image).permute(*(2 + each for each in dims), 1, 0).flatten(0, -2)

    def back(leaf: Tensor) -> Tensor:
        return leaf.reshape(*space, channels, -1).permute(-1, -2, *dims).flatten(1)

    return to, back
