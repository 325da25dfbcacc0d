"""Fits in progress on survivors, as loops hold and checkpoints save them: nothing is as large as the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lthfunc.training.averaging import result_of
from lthfunc.training.results import BestNetwork, Fit, MaskChange, Point, SinceLastPoint
from lthfunc.trees.ops import raw_bytes, same_bits
from lthfunc.trees.packed_states import AnyState, PackedState, at_rest, pack_state, unpack_state
from lthfunc.trees.packing import packed_like
from lthfunc.trees.types import Masks, TrainState


class PackedBest(NamedTuple):
    """A `BestNetwork` on its survivors, which may lie elsewhere than those of now. It has no optimiser state."""

    point: Point
    network: PackedState


class PackedFit(NamedTuple):
    """A `Fit` in progress on survivors."""

    state: PackedState
    best: PackedBest
    curve: tuple[Point, ...]
    since: SinceLastPoint | None = None
    changes: tuple[MaskChange, ...] = ()
    memory: tuple[Masks, ...] = ()


#: A fit in progress, in one form or the other.
AnyFit = Fit | PackedFit


def dense_fit(fit: AnyFit, state: TrainState | None = None) -> Fit:
    """The fit with dense trees. state: in place of its own."""
    if isinstance(fit, Fit):
        return fit if state is None else fit._replace(state=state)
    best = unpack_state(fit.best.network)
    return Fit(
        unpack_state(fit.state) if state is None else state, BestNetwork(fit.best.point, best.params, best.buffers),
        fit.curve, fit.since, fit.changes, fit.memory,
    )  # fmt: skip


def fit_at_rest(fit: Fit) -> AnyFit:
    """The fit in the form that takes less memory while nothing computes with it, to the same bits."""
    if not isinstance(at_rest(fit.state._replace(opt=())), PackedState):
        return fit
    packed = packed_fit(fit)
    again = dense_fit(packed)  # an optimiser of one's own may keep numbers where weights were pruned
    return packed if same_bits((again.state, again.best[1:]), (fit.state, fit.best[1:])) else fit


def packed_fit(fit: AnyFit, state: PackedState | None = None) -> PackedFit:
    """The fit on survivors. state: in place of its own, whose pruned weights are zero."""
    if isinstance(fit, PackedFit):
        return fit if state is None else fit._replace(state=state)
    state = pack_state(fit.state) if state is None else state
    best = _packed_best(fit.best, state)
    return PackedFit(state, best, fit.curve, fit.since, fit.changes, fit.memory)


def _packed_best(best: BestNetwork, state: PackedState) -> PackedBest:
    """A network on its survivors, which lie where the state's do, or, where it has others, at places of their own."""
    positions = {name: _places(best.params[name], where) for name, where in state.positions.items()}
    network = PackedState(
        packed_like(best.params, positions), positions, state.shapes, best.buffers, (), torch.tensor(best.point.step)
    )
    return PackedBest(best.point, network)


def _places(leaf: Tensor, known: Tensor) -> Tensor:
    """Where a leaf is not +0.0: the known places if they have all of it."""
    live = raw_bytes(leaf).view(-1, leaf.element_size()).any(1)
    count = int(live.count_nonzero())
    covers = count <= len(known) and int(live.index_select(0, known).count_nonzero()) == count
    return known if covers else live.nonzero().flatten()


def unfinished_fits(
    fits: Sequence[AnyFit], states: Sequence[AnyState], since: Sequence[SinceLastPoint]
) -> list[AnyFit]:
    """Fits that have gone on to these states, in the states' form."""
    return [_continued(*each) for each in zip(fits, states, since, strict=True)]


def _continued(fit: AnyFit, state: AnyState, since: SinceLastPoint) -> AnyFit:
    if isinstance(state, PackedState):
        return packed_fit(fit, state)._replace(since=since)
    return dense_fit(fit, state)._replace(since=since)


def evaluated(fit: AnyFit, point: Point) -> AnyFit:
    """A fit with a point more at its state, which is the best network from now on if its validation loss is less than
    that of the best so far, or if masks have changed since then."""
    changed = max((each.step for each in fit.changes if each.exchanged), default=-1)
    curve = (*fit.curve, point)
    if not (point.val_loss < fit.best.point.val_loss or fit.best.point.step <= changed):
        return fit._replace(curve=curve, since=None)
    if isinstance(fit, Fit):
        return fit._replace(best=best_network(point, fit.state), curve=curve, since=None)
    best = PackedBest(point, result_of(fit.state)._replace(opt=()))
    return fit._replace(best=best, curve=curve, since=None)


def best_network(point: Point, state: TrainState) -> BestNetwork:
    """The network that a state gives, as the best one."""
    result = result_of(state)
    return BestNetwork(point, result.params, result.buffers)


def without_moments(fit: AnyFit) -> PackedFit:
    """The fit on survivors without the optimiser's state, which whoever trains it has."""
    found = packed_fit(fit)
    return found._replace(state=found.state._replace(opt=()))
