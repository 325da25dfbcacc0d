"""Leaves of a state on several devices: how they are cut, as DTensors, and in files that any number of ranks reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.distributed.collectives import collectives, has_group
from lthfunc.errors import DamagedError, UserError
from lthfunc.trees.ops import flattened, map_leaves_like, tree_map
from lthfunc.trees.types import Params, TrainState


@public
def sharded(state: TrainState, mesh: Any = None) -> TrainState:
    """The state with params, masks and optimiser state as DTensors, cut along dimension 0. All ranks call it alike.

    mesh: of one dimension, by default over all ranks. What has not the params' shapes (buffers, the step, an
    optimiser's scalars) stays whole on every rank. Raises UserError where there is no process group, or a parameter is
    a scalar.

    >>> try:
    ...     lf.sharded(lf.init(lf.from_module(nn.Linear(4, 2))))
    ... except lf.UserError as error:
    ...     print(error)
    ranks: torch.distributed has no process group; begin one with init_process_group
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    if mesh is None:
        mesh = init_device_mesh(state.step.device.type, (collectives().world_size,))
    shard_layout(state.params, mesh.size())

    def cut(tree: Any) -> Any:
        return tree_map(lambda leaf: distribute_tensor(leaf, mesh, [Shard(0)]), tree)

    opt = map_leaves_like(state.params, state.opt, cut)
    return state._replace(params=cut(state.params), masks=cut(state.masks), opt=opt)


def unsharded(state: Any) -> Any:
    """A sharded state, or another tree, with whole leaves on every rank. All ranks call it.

    >>> lf.unsharded({"w": torch.ones(2)})
    {'w': tensor([1., 1.])}
    """
    return tree_map(lambda leaf: leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf, state)


@public
def save_sharded(state: TrainState, folder: str | Path) -> None:
    """Write a state to `folder`, each rank its own shards, by torch.distributed.checkpoint. All ranks call it.

    >>> state = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> lf.save_sharded(state, "state")
    >>> lf.same_bits(lf.load_sharded("state", like=state), state)
    True
    """
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quiet():
        save(_named(state), checkpoint_id=str(folder), no_dist=not has_group())


@public
def load_sharded(folder: str | Path, like: TrainState) -> TrainState:
    """A state that `save_sharded` wrote to `folder`, with leaves as those of `like`. All ranks call it.

    There may be another number of ranks than when it was written. Raises DamagedError where the folder holds no such
    state, or that of another network.

    >>> state = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> lf.save_sharded(state, "state")
    >>> int(lf.load_sharded("state", like=state).step)
    0
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_loader import load

    if not (Path(folder) / ".metadata").is_file():
        raise DamagedError(f"{folder}: holds no state that save_sharded has finished to write")
    fresh = tree_map(torch.zeros_like, like)
    names = _named(fresh)
    try:
        with _quiet():
            load(names, checkpoint_id=str(folder), no_dist=not has_group())
    except (Exception, CheckpointException) as error:  # of its many kinds
        reason = str(error).strip().splitlines()[-1]  # below the stacks of all ranks
        raise DamagedError(f"{folder}: no state like this one can be read from it ({reason})") from error
    return fresh


@contextmanager
def _quiet() -> Iterator[None]:
    """One process alone may read and write, without a warning that it is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _named(state: TrainState) -> dict[str, Any]:
    """The leaves of a state by name: the tensors themselves."""
    named = {
        f"{kind}.{name}": leaf
        for kind, tree in (("params", state.params), ("buffers", state.buffers), ("masks", state.masks))
        for name, leaf in tree.items()
    }
    opt, _ = flattened(state.opt)
    return {**named, **{f"opt.{number}": leaf for number, leaf in enumerate(opt)}, "step": state.step}


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
