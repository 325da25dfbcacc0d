"""Trees of dense leaves and trees of survivors: a change of form, without loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.trees.ops import scattered
from lthfunc.trees.types import Masks, Params


class Packed(NamedTuple):
    """Params on their survivors alone.

    values: one vector (survivors,) for each masked leaf, in the order of `positions`; other leaves as they are.
    positions: for each masked leaf int64 (survivors,), where they lie in the flattened leaf. shapes: of these leaves.
    """

    values: Params
    positions: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]


@public
def pack(params: Params, masks: Masks) -> Packed:
    """The surviving weights of each masked leaf as a vector: ``unpack(pack(params, masks))`` has the same bits.

    Raises UserError where a mask doesn't fit its leaf, naming the first that differs.

    >>> packed = lf.pack({"w": torch.tensor([[1.0, 0.0], [0.0, 2.0]])}, {"w": torch.eye(2, dtype=torch.bool)})
    >>> packed.values["w"], packed.positions["w"]
    (tensor([1., 2.]), tensor([0, 3]))
    """
    positions = {name: mask.flatten().nonzero().flatten() for name, mask in masks.items()}
    return Packed(packed_like(params, positions), positions, {name: tuple(params[name].shape) for name in masks})


@public
def unpack(packed: Packed) -> Params:
    """The dense leaves of params that `pack` has packed; pruned weights are +0.0.

    packed: the surviving weights, where they lie, and the shapes of their leaves.

    >>> lf.unpack(lf.pack({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([True, False])}))
    {'w': tensor([1., 0.])}
    """
    return unpacked_like(packed.values, packed.positions, packed.shapes)


def packed_like(leaves: Mapping[str, Tensor], positions: Mapping[str, Tensor]) -> Params:
    """Leaves named and shaped like params (a gradient, a moment) on the survivors."""
    # Not by brackets, here and below: they are for several dimensions, and eight times as slow.
    return {
        name: leaf.flatten().index_select(0, positions[name]) if name in positions else leaf
        for name, leaf in leaves.items()
    }


def unpacked_like(
    leaves: Mapping[str, Tensor], positions: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> Params:
    """The inverse of `packed_like`. shapes: of the leaves with positions."""
    return {
        name: scattered(leaf, positions[name], shapes[name]) if name in positions else leaf
        for name, leaf in leaves.items()
    }


def columns(leaves: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Params:
    """Survivors as tensors (n, 1, …) of as many dimensions as the dense leaves have, one at least."""
    return {name: leaf.view(-1, *(1,) * (len(shapes[name]) - 1)) for name, leaf in leaves.items()}


def masks_of(positions: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> Masks:
    """Dense masks of survivors at these positions."""

    def mask(places: Tensor, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=torch.bool, device=places.device).view(-1).index_fill_(0, places, True)

    return {name: mask(positions[name], shape).view(shape) for name, shape in shapes.items()}
