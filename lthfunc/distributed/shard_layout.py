"""Leaves of a tree and their parts on ranks, in one row: what a collective sends at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import UserError
from lthfunc.trees.types import Params


class ShardLayout(NamedTuple):
    """How whole leaves are cut among ranks: along their first dimension, as DTensors are; last ones may be shorter.

    shapes: of the whole leaves; ranks: of how many parts.
    """

    shapes: dict[str, tuple[int, ...]]
    ranks: int

    def rows(self, name: str) -> int:
        """Of a leaf's full part."""
        return -(-self.shapes[name][0] // self.ranks)

    def parts_of(self, wholes: Mapping[str, Tensor]) -> Tensor:
        """Whole leaves as a row of all ranks' parts, every part filled up with zeros to its full size."""
        columns = [_filled(leaf, self.rows(name) * self.ranks) for name, leaf in wholes.items()]
        return torch.cat([column.reshape(self.ranks, -1) for column in columns], 1).flatten()

    def part(self, mine: Mapping[str, Tensor]) -> Tensor:
        """One rank's parts as a row, filled up."""
        return torch.cat([_filled(leaf, self.rows(name)).flatten() for name, leaf in mine.items()])

    def wholes(self, row: Tensor) -> Params:
        """Whole leaves, of a row of all ranks' parts."""
        columns = torch.split(row.view(self.ranks, -1), [self._full(name) for name in self.shapes], 1)
        return {
            name: column.reshape(-1, *shape[1:])[: shape[0]]
            for column, (name, shape) in zip(columns, self.shapes.items(), strict=True)
        }

    def mine(self, row: Tensor, like: Mapping[str, Tensor]) -> Params:
        """One rank's parts, of its row. like: parts of the same sizes."""
        parts = torch.split(row, [self._full(name) for name in self.shapes])
        return {
            name: part.view(self.rows(name), *leaf.shape[1:])[: len(leaf)]
            for part, (name, leaf) in zip(parts, like.items(), strict=True)
        }

    def _full(self, name: str) -> int:
        return self.rows(name) * torch.Size(self.shapes[name][1:]).numel()


def _filled(leaf: Tensor, rows: int) -> Tensor:
    """With zeros, to so many rows."""
    return torch.cat([leaf, leaf.new_zeros(rows - len(leaf), *leaf.shape[1:])])


def shard_layout(wholes: Mapping[str, Tensor], ranks: int) -> ShardLayout:
    """Of these leaves. Raises UserError for a scalar, which has no first dimension."""
    for name, leaf in wholes.items():
        if leaf.ndim == 0:
            raise UserError(f"shards: {name} is a scalar, and leaves are cut along their first dimension")
    return ShardLayout({name: tuple(leaf.shape) for name, leaf in wholes.items()}, ranks)
