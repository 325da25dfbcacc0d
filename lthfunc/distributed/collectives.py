"""Ranks that compute together: how they add up, and trees of which every rank holds a part.

Parts are cut along a leaf's first dimension, as DTensors or plain tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.trees.ops import tree_map


class Collectives(NamedTuple):
    """The collective operations of a group of ranks.

    rank: this rank's number, 0 to world_size - 1. all_reduce: (n,) -> the sum over all ranks, (n,). All ranks call it
    equally often, with vectors of equal length, and get the same bits. The others are None unless the transport has a
    faster way than `all_reduce`: native_reduce_at: (vector, index) -> the sum at the index, zeros elsewhere;
    native_all_gather and native_reduce_scatter: as the methods without `native_`.
    """

    rank: int
    world_size: int
    all_reduce: Callable[[Tensor], Tensor]
    native_reduce_at: Callable[[Tensor, Tensor], Tensor] | None = None
    native_all_gather: Callable[[Tensor], Tensor] | None = None
    native_reduce_scatter: Callable[[Tensor], Tensor] | None = None

    def all_reduce_at(self, vector: Tensor, index: Tensor) -> Tensor:
        """The sum over all ranks at an index (int64), zeros elsewhere: (n,). Only the values at the index are sent."""
        if self.native_reduce_at is not None:
            return self.native_reduce_at(vector, index)
        return torch.zeros_like(vector).index_copy(0, index, self.all_reduce(vector[index]))

    def all_gather(self, vector: Tensor) -> Tensor:
        """The vectors of all ranks, in the order of ranks: (n,) -> (world_size * n,)."""
        if self.native_all_gather is not None:
            return self.native_all_gather(vector)
        rows = torch.arange(self.world_size, device=vector.device)[:, None] == self.rank
        return self.all_reduce(torch.where(rows, vector, torch.zeros_like(vector)).flatten())

    def reduce_scatter(self, vector: Tensor) -> Tensor:
        """This rank's part of the sum: (world_size * n,) -> (n,)."""
        if self.native_reduce_scatter is not None:
            return self.native_reduce_scatter(vector)
        return self.all_reduce(vector).view(self.world_size, -1)[self.rank]


#: One rank, which holds everything.
SINGLE_RANK = Collectives(0, 1, lambda vector: vector)


def collectives(group: Any = None) -> Collectives:
    """The collective operations of a process group of torch.distributed, by default of all ranks.

    group: a process group. Its sums can be compiled into a step. Raises UserError where there is no process group.

    >>> try:
    ...     lf.collectives()
    ... except lf.UserError as error:
    ...     print(error)
    ranks: torch.distributed has no process group; begin one with init_process_group
    """
    from torch import distributed

    if not has_group():
        raise UserError("ranks: torch.distributed has no process group; begin one with init_process_group")
    name: str = (group or cast("Any", distributed.group.WORLD)).group_name
    ranks, ops = distributed.get_world_size(group), torch.ops._c10d_functional
    return Collectives(
        distributed.get_rank(group),
        ranks,
        lambda vector: _summed(vector, name),
        lambda vector, index: torch.ops.lthfunc.total_at(vector, index, name),
        lambda vector: ops.wait_tensor(ops.all_gather_into_tensor(vector.contiguous(), ranks, name)),
        lambda vector: ops.wait_tensor(ops.reduce_scatter_tensor(vector.contiguous(), "sum", ranks, name)),
    )


def has_group() -> bool:
    """Whether torch.distributed has a process group."""
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def current_collectives() -> Collectives:
    """The ranks that this process is one of: those of its process group, or none but itself."""
    return collectives() if has_group() else SINGLE_RANK


def _summed(vector: Tensor, group: str) -> Tensor:
    """A functional collective: no argument changes, and a compiler sees it as any other operation."""
    ops = torch.ops._c10d_functional
    summed: Tensor = ops.wait_tensor(ops.all_reduce(vector.contiguous(), "sum", group))
    return summed


@torch.library.custom_op(
    "lthfunc::total_at", mutates_args=(), schema="(Tensor vector, Tensor index, str group) -> Tensor"
)
def _total_at(vector: Tensor, index: Tensor, group: str) -> Tensor:
    """One operation to a compiler, so that a program serves an index of any length."""
    if len(index) == len(vector):
        return _summed(vector, group)
    return torch.zeros_like(vector).index_copy_(0, index, _summed(vector.index_select(0, index), group))


@_total_at.register_fake
def _total_at_shape(vector: Tensor, index: Tensor, group: str) -> Tensor:
    return torch.empty_like(vector)


def local_shards(tree: Any) -> Any:
    """This rank's part of a tree: a DTensor's own shard; plain tensors are parts already.

    Raises UserError where a leaf is cut in another way than along its first dimension, on one mesh dimension.
    """
    return tree_map(_local, tree)


def like_dtensors(parts: Any, tree: Any) -> Any:
    """Parts as DTensors where the leaves of `tree` are, of the same mesh and cut; dtypes may be others."""
    return tree_map(_like, parts, tree)


def _local(leaf: Any) -> Any:
    placements = getattr(leaf, "placements", None)
    if placements is None:
        return leaf
    if len(placements) != 1 or not placements[0].is_shard(0):
        raise UserError(f"shards: a leaf lies as {placements}; expected Shard(0) on a mesh of one dimension")
    return leaf.to_local()


def _like(part: Any, leaf: Any) -> Any:
    if getattr(leaf, "placements", None) is None:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, leaf.device_mesh, leaf.placements, run_check=False, shape=leaf.shape, stride=leaf.stride()
    )


def count_tensor(numbers: list[int], device: torch.device) -> Tensor:
    """Counts to collectives: int64."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)
