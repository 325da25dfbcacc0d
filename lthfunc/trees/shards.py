"""Trees of which every rank holds a part: leaves cut along their first dimension, as DTensors or plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.trees.ops import tree_map


class Exchange(NamedTuple):
    """How ranks add up. rank: this one's number, of `ranks`; total: an int64 vector -> its sum over all ranks.

    All ranks call `total` equally often, with vectors of equal length.
    """

    rank: int
    ranks: int
    total: Callable[[Tensor], Tensor]


def alone() -> Exchange:
    """One rank, which holds everything."""
    return Exchange(0, 1, lambda numbers: numbers)


def over(group: Any = None) -> Exchange:
    """The ranks of a process group of torch.distributed, by default all. Raises UserError where there is none."""
    from torch import distributed

    if not distributed.is_initialized():
        raise UserError("ranks: torch.distributed has no process group; begin one with init_process_group")

    def total(numbers: Tensor) -> Tensor:
        summed = numbers.clone()
        distributed.all_reduce(summed, group=group)
        return summed

    return Exchange(distributed.get_rank(group), distributed.get_world_size(group), total)


def local(tree: Any) -> Any:
    """This rank's part of a tree: a DTensor's own shard; plain tensors are parts already.

    Raises UserError where a leaf is cut in another way than along its first dimension, on one mesh dimension.
    """
    return tree_map(_local, tree)


def like(parts: Any, tree: Any) -> Any:
    """Parts as DTensors where the leaves of `tree` are, of the same mesh and cut; dtypes may be others."""
    return tree_map(_like, parts, tree)


def _local(leaf: Any) -> Any:
    placements = getattr(leaf, "placements", None)
    if placements is None:
        return leaf
    if len(placements) != 1 or not placements[0].is_shard(0):
        raise UserError(f"shards: a leaf lies as {placements}; it takes Shard(0) on a mesh of one dimension")
    return leaf.to_local()


def _like(part: Any, leaf: Any) -> Any:
    if getattr(leaf, "placements", None) is None:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, leaf.device_mesh, leaf.placements, run_check=False, shape=leaf.shape, stride=leaf.stride()
    )


def sizes(numbers: list[int], device: torch.device) -> Tensor:
    """Counts to exchange: int64."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)
