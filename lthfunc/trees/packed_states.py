"""The state of a training on its survivors: nothing in it is as large as the network."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.trees.ops import Count, count, layer_counts, map_leaves_like
from lthfunc.trees.packing import masks_of, packed_like, unpacked_like
from lthfunc.trees.types import Buffers, Params, TrainState


class PackedState(NamedTuple):
    """A `TrainState` on its survivors, a pytree.

    params: of masked leaves the survivors, one vector each; others as they are. positions: of each masked leaf int64
    (survivors,), where they lie in the flattened leaf, rising. shapes: of these leaves, int64 (dimensions,). buffers:
    of the module. opt: the optimiser's state for `params`, or ``()``. step: int64 scalar, the number of steps taken.
    """

    params: Params
    positions: dict[str, Tensor]
    shapes: dict[str, Tensor]
    buffers: Buffers
    opt: Any
    step: Tensor

    def __repr__(self) -> str:
        kept, total = sum(map(len, self.positions.values())), sum(self.sizes.values())
        return f"PackedState({kept:,} of {total:,} weights remain, step {int(self.step):,})"

    @property
    def sizes(self) -> dict[str, int]:
        """Of the masked leaves, pruned weights counted."""
        return {name: size_of(shape) for name, shape in self.shapes.items()}


#: A state, in one form or the other.
AnyState = TrainState | PackedState
#: One weight in so many remains where survivors and their places take less memory than dense leaves and masks.
_SPARSE = 3


def size_of(shape: Tensor) -> int:
    """Of a leaf: its numbers, pruned ones counted."""
    return torch.Size(shape.tolist()).numel()


@public
def pack_state(state: TrainState) -> PackedState:
    """The state on its survivors: ``unpack_state(pack_state(state))`` has the same bits.

    state: dense, its pruned weights zero. Raises UserError where a mask doesn't fit its leaf, naming the first that
    differs.

    >>> state = lf.prune(density=0.25)(lf.init(lf.from_module(nn.Linear(4, 2))))
    >>> lf.pack_state(state)
    PackedState(2 of 8 weights remain, step 0)
    """
    positions = {name: mask.flatten().nonzero().flatten() for name, mask in state.masks.items()}
    shapes = {name: torch.tensor(mask.shape) for name, mask in state.masks.items()}

    def pack(tree: Params) -> Params:
        return packed_like(tree, positions)

    opt = map_leaves_like(state.params, state.opt, pack)
    return PackedState(pack(state.params), positions, shapes, state.buffers, opt, state.step)


@public
def unpack_state(state: PackedState) -> TrainState:
    """The dense state, for a network that fits into memory: zeros, and masks, where weights were pruned.

    state: packed.

    >>> with torch.device("meta"):
    ...     net = nn.Linear(4, 2)
    >>> lf.unpack_state(lf.init_packed(net, density=0.5))
    TrainState(10 params, 4 of 8 weights remain, step 0)
    """
    shapes = {name: tuple(shape.tolist()) for name, shape in state.shapes.items()}

    def unpack(tree: Params) -> Params:
        return unpacked_like(tree, state.positions, shapes)

    opt = map_leaves_like(state.params, state.opt, unpack)
    masks = masks_of(state.positions, shapes)
    return TrainState(unpack(state.params), state.buffers, masks, opt, state.step)


def at_rest(state: TrainState) -> AnyState:
    """The state in the form that takes less memory while nothing computes with it; its pruned weights are zero."""
    kept, total = count(state.masks)
    return pack_state(state) if _SPARSE * kept < total else state


def dense_state(state: AnyState) -> TrainState:
    """The state with dense leaves."""
    return unpack_state(state) if isinstance(state, PackedState) else state


def counts_of(state: AnyState) -> dict[str, Count]:
    """`layer_counts` of a state in either form."""
    if isinstance(state, PackedState):
        return {name: Count(len(state.positions[name]), size) for name, size in state.sizes.items()}
    return layer_counts(state.masks)
