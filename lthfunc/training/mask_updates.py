"""Masks that change during a training: the steps of the changes, what changes, and a record of each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.errors import ArgumentError, UserError, invalid
from lthfunc.tracebacks import is_library_function
from lthfunc.training.packed_fits import AnyFit
from lthfunc.training.results import (
    Decided,
    Deciding,
    DenseNetwork,
    Exchanged,
    Fit,
    GradientGrowth,
    LayerChange,
    MaskChange,
)
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.ops import apply_masks, as_numbers, leaf_difference, masked_like
from lthfunc.trees.packed_trees import OnPlaces, bits_at
from lthfunc.trees.rng import key
from lthfunc.trees.types import Masks, NewMasks, Params, SurvivorPruning, TrainState


class UpdateContext(NamedTuple):
    """What an update of masks may know beside the state. step: after which it happens; last: whether none follows.

    memory: masks that `MaskUpdates.remember` has kept, of this step and earlier ones.
    """

    seed: int
    step: int
    last: bool
    memory: tuple[Masks, ...] = ()


def _nothing(state: TrainState, now: UpdateContext) -> tuple[Masks, ...]:
    return ()


class MaskUpdates(NamedTuple):
    """Masks that change after some steps of a training, as in gradual pruning, SET and RigL; for `fit` and `Plan`.

    steps: increasing; those before a training's start, or from its end on, are left out. change: (state, UpdateContext)
    -> the state to continue from, at the same step; pruned weights must be zero, and moments of its `opt` continue.
    remember: (state, UpdateContext) -> masks to keep until the next update, called before `change`. Both are pure;
    random layers and the global generators draw the same numbers in every run. exchange: (a function that makes the
    dense state without optimiser state, UpdateContext) -> (what grows, drop fraction), if `change` is `drop_and_grow`
    of these, `NewMasks`, if it is `under_new_masks` of these, or `prune_survivors`, if it is a `prune` by magnitude: an
    engine that keeps survivors alone then moves only what changes, to the same bits. draws_after_network: whether
    exchange draws from the global generators only after it has asked for the dense state, if at all, so that they need
    not be seeded before.

    >>> def shrink(state, now):
    ...     return lf.prune(fraction=0.5, keep_moments=True)(state)
    >>> lf.MaskUpdates((10, 20), shrink).steps
    (10, 20)
    """

    steps: tuple[int, ...]
    change: Callable[[TrainState, UpdateContext], TrainState]
    remember: Callable[[TrainState, UpdateContext], tuple[Masks, ...]] = _nothing
    exchange: Callable[[DenseNetwork, UpdateContext], Decided] | None = None
    draws_after_network: bool = False

    def following(self, fit: AnyFit, until: int) -> int | None:
        """The step of a fit's next update before step `until`; None if there is none. Raises UserError where the steps
        don't increase."""
        check_increasing(self.steps)
        first = fit.changes[-1].step + 1 if fit.changes else fit.curve[0].step
        return next((step for step in self.steps if first <= step < until), None)

    def applied(self, fit: Fit, seed: int, until: int) -> Fit:
        """The fit after its update at its current step. Raises UserError if a user's function returns another state."""
        state = fit.state
        now = self._context(seed, int(state.step), until)
        with seeded_update(now, state.step.device):
            now = now._replace(memory=self.remember(state, now._replace(memory=fit.memory)))
            after = _checked(self.change, state, now)
        change = MaskChange(now.step, layer_changes(state.masks, after.masks), masks_digest(after.masks))
        return fit._replace(state=after, changes=(*fit.changes, change), memory=now.memory)

    def on_survivors(self, training: Exchanging, fits: Sequence[AnyFit], step: int, until: int) -> list[AnyFit] | None:
        """The fits after an update at this step without their states, which `training` holds; None if it can't.

        Their `state` and `since` are those of before.
        """
        exchange = self.exchange
        if exchange is None:
            return None

        def decide(network: DenseNetwork, seed: int) -> Decided:
            now, device = self._context(seed, step, until), fits[0].state.step.device
            with ExitStack() as seeded:

                def seed_generators() -> None:
                    seeded.enter_context(seeded_update(now, device))

                if not self.draws_after_network:
                    seed_generators()
                    found = exchange(network, now)
                else:
                    found = exchange(_first_seeding(network, seed_generators), now)
            found = checked_exchange(found)
            if isinstance(found, (NewMasks, SurvivorPruning)):
                return found
            growth, share = found
            if isinstance(growth, GradientGrowth):  # its random layers draw the numbers of this update, too
                growth = growth._replace(scores=_seeding(growth.scores, now, device))
            return growth, share

        found = training.exchange(decide)
        if found is None:
            return None
        changes = [MaskChange(step, layers, masks_digest(masks)) for masks, layers in found]
        return [fit._replace(changes=(*fit.changes, change)) for fit, change in zip(fits, changes, strict=True)]

    def _context(self, seed: int, step: int, until: int) -> UpdateContext:
        return UpdateContext(seed, step, not any(step < other < until for other in self.steps))


def checked_exchange(found: Any) -> Decided:
    """What an exchange gave. Raises UserError for anything but new masks, a pruning, or a growth and a fraction."""
    if isinstance(found, (NewMasks, SurvivorPruning)):
        return found
    pair = isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], (int, float))
    if not pair or not (isinstance(found[0], dict) or callable(found[0]) or isinstance(found[0], GradientGrowth)):
        raise invalid("updates: exchange", described(found), "(growth, fraction), NewMasks or prune_survivors(…)")
    return found[0], found[1]


def check_increasing(steps: Sequence[int]) -> None:
    """Raise UserError for steps of updates that don't increase."""
    if any(second <= first for first, second in pairwise(steps)):
        raise invalid("updates: steps", tuple(steps), "steps that increase")


class Exchanging(Protocol):
    """A training that may exchange weights where it keeps them (`TrainingSession`)."""

    def exchange(self, decide: Deciding) -> list[Exchanged] | None:
        """What each state's masks are now; None, with nothing done, where it can't."""


def can_exchange(found: Decided, shapes: Mapping[str, torch.Size]) -> bool:
    """Whether new masks, or scores of type float32, are given for each weight, and the fraction is one. shapes: of the
    masks."""
    if isinstance(found, NewMasks):
        kinds = {name: (shape, torch.bool) for name, shape in shapes.items()}
        return all({name: (mask.shape, mask.dtype) for name, mask in each.items()} == kinds for each in found)
    if isinstance(found, SurvivorPruning):
        return found.then is None or can_exchange(found.then, shapes)
    growth, drop_fraction = found
    if not 0 <= drop_fraction <= 1:
        return False
    if not isinstance(growth, dict):
        return True
    kinds = {name: (leaf.shape, leaf.dtype) for name, leaf in growth.items()}
    return kinds == {name: (shape, torch.float32) for name, shape in shapes.items()}


def seeded_update(now: UpdateContext, device: torch.device) -> AbstractContextManager[None]:
    """A context in which the global generators draw the numbers of one update."""
    return seeded_generators(key(now.seed, "mask-update", now.step), device)


def _seeding(scores: Callable[[], Params], now: UpdateContext, device: torch.device) -> Callable[[], Params]:
    def seeded() -> Params:
        with seeded_update(now, device):
            return scores()

    return seeded


def _first_seeding(network: DenseNetwork, seed_generators: Callable[[], None]) -> DenseNetwork:
    """A network that seeds the global generators when it is first asked for: to keep and restore their states takes
    as long as an update's draws."""
    left = [seed_generators]

    def asked() -> TrainState:
        while left:
            left.pop()()
        return network()

    return asked


def _checked(
    change: Callable[[TrainState, UpdateContext], TrainState], state: TrainState, now: UpdateContext
) -> TrainState:
    """The changed state. A user's is compared with the one before, and its pruned weights are set to zero."""
    after = change(state, now)
    if is_library_function(change):
        return after
    if not isinstance(after, TrainState):
        raise ArgumentError(f"MaskUpdates: change returned {type(after).__name__} (expected a TrainState)")
    for ours, theirs in zip(state[:3], after[:3], strict=True):  # params, buffers, masks
        difference = leaf_difference(theirs, ours)
        if difference is not None:
            raise UserError(f"MaskUpdates: change returned another network: {difference}")
    params, opt = apply_masks(after.params, after.masks), masked_like(after.opt, after.masks)
    return after._replace(params=params, opt=opt, step=state.step)


def layer_changes(before: Masks, after: Masks) -> dict[str, LayerChange]:
    """What changed in each layer, in numbers of weights."""
    pairs = [(before[name], mask) for name, mask in after.items()]
    found = as_numbers([number for a, b in pairs for number in (b.sum(), (a & ~b).sum(), (b & ~a).sum())])
    return {name: LayerChange(*map(int, found[3 * at : 3 * at + 3])) for at, name in enumerate(after)}


def masks_digest(masks: Mapping[str, Tensor | OnPlaces]) -> str:
    """The SHA-256 of masks, packed to bits, layer by layer."""
    found = hashlib.sha256()
    for name, mask in masks.items():
        found.update(f"{name}{tuple(mask.shape)}".encode())
        if isinstance(mask, OnPlaces):
            bits = bits_at(mask.places, mask.shape.numel()).numpy()
        else:
            bits = np.packbits(mask.flatten().to("cpu", torch.bool).numpy())
        found.update(bits.tobytes())
    return found.hexdigest()


def following(updates: MaskUpdates | None, fits: Sequence[AnyFit], until: int) -> int | None:
    """The step of the next update of fits that train together, which have the same steps behind them."""
    return None if updates is None else updates.following(fits[0], until)
