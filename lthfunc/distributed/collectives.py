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
    """How ranks add up. rank: this one's number, of `ranks`; total: a vector -> its sum over all ranks.

    All ranks call `total` equally often, with vectors of equal length, and get the same bits. at: (vector, index) ->
    that sum at the index, zeros elsewhere, where a transport has an own way to it; only what stands there travels.
    gather, scatter: the vectors of all ranks in a row; and this rank's of as many equal parts of the sum.
    """

    rank: int
    ranks: int
    total: Callable[[Tensor], Tensor]
    at: Callable[[Tensor, Tensor], Tensor] | None = None
    gather: Callable[[Tensor], Tensor] | None = None
    scatter: Callable[[Tensor], Tensor] | None = None

    def total_at(self, vector: Tensor, index: Tensor) -> Tensor:
        """The sum over all ranks at an index (int64), zeros elsewhere."""
        if self.at is not None:
            return self.at(vector, index)
        return torch.zeros_like(vector).index_copy(0, index, self.total(vector[index]))

    def gathered(self, vector: Tensor) -> Tensor:
        """The vectors of all ranks, in a row."""
        if self.gather is not None:
            return self.gather(vector)
        rows = torch.arange(self.ranks, device=vector.device)[:, None] == self.rank
        return self.total(torch.where(rows, vector, torch.zeros_like(vector)).flatten())

    def scattered(self, vector: Tensor) -> Tensor:
        """This rank's part of the sum, of as many equal parts as there are ranks."""
        if self.scatter is not None:
            return self.scatter(vector)
        return self.total(vector).view(self.ranks, -1)[self.rank]


#: One rank, which holds everything.
SINGLE_RANK = Collectives(0, 1, lambda vector: vector)


def collectives(group: Any = None) -> Collectives:
    """The ranks of a process group of torch.distributed, by default all; its sums can be compiled into a step.

    Raises UserError where there is none.
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
        raise UserError(f"shards: a leaf lies as {placements}; it takes Shard(0) on a mesh of one dimension")
    return leaf.to_local()


def _like(part: Any, leaf: Any) -> Any:
    if getattr(leaf, "placements", None) is None:
        return part
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        part, leaf.device_mesh, leaf.placements, run_check=False, shape=leaf.shape, stride=leaf.stride()
    )


def count_tensor(numbers: list[int], device: torch.device) -> Tensor:
    """Counts to exchange: int64."""
    return torch.tensor(numbers, dtype=torch.int64, device=device)
