"""A module whose optimiser keeps to masks and tells of its steps, so that a plan prunes it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.distributed.equal_masks import check_equal_masks
from lthfunc.errors import ArgumentError, UserError
from lthfunc.loops.held_masks import HeldMasks
from lthfunc.loops.loop import Loop
from lthfunc.loops.plans import Change, LoopPlan, Rewind, begun, check_begun, takes_gradient
from lthfunc.loops.schedules import Schedules
from lthfunc.loops.torch_optimizers import fresh_state, mixes, put_state, state_tree, within_step
from lthfunc.sparsify.transforms import ticket
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.ops import Count, apply_masks, clone, count, leaf_difference, masked_like, tree_map
from lthfunc.trees.rng import key
from lthfunc.trees.types import Masks, Ticket, TrainState


class Attached:
    """A module in somebody's loop, held to its masks (`attach`). Also a context manager, which detaches at its end.

    step: of the state that is trained, which rewinding sets back; steps that a GradScaler skips don't count. round: how
    many rounds have begun. handles: the hooks that `detach` removes.
    """

    def __init__(
        self, loop: Loop, plan: LoopPlan, rewind: Rewind | None, anchor_step: int, state_dict: Any = None
    ) -> None:
        self._loop, self._plan, self._rewind, self._anchor_step = loop, plan, rewind, anchor_step
        self.step = self.round = 0
        self._anchor: TrainState | None = None
        self._held = HeldMasks(loop.params, loop.prunable, loop.optimizers)
        self._fresh, self._mixes = fresh_state(loop.optimizers, loop.params), any(map(mixes, loop.optimizers))
        self._schedules = Schedules(loop.schedulers, loop.optimizers)
        self.handles = [
            loop.optimizers[0].register_step_pre_hook(self._before_step),
            loop.optimizers[-1].register_step_post_hook(self._after_step),
        ]
        try:
            if state_dict is not None:
                self.load_state_dict(state_dict)
            else:
                self._try_next()
                self._arrive()
        except BaseException:
            self.detach()
            raise

    @property
    def masks(self) -> Masks:
        """The masks of now: bool, True where a weight remains."""
        return tree_map(self._to_device, self._held.masks)

    @property
    def anchor(self) -> TrainState | None:
        """The state that rewinding returns to; None before its step."""
        return tree_map(self._to_device, self._anchor)

    @property
    def state(self) -> TrainState:
        """A copy of the network and its optimiser state as of now, which every function of this library takes.

        `opt` is what the optimiser holds: key -> parameter name -> value; ``()`` before its first step.
        """
        return clone(self._now())

    def ticket(self) -> Ticket:
        """The masks, and the masked weights and buffers of now: after `next_round`, those that training starts from.

        The ticket of a trained network is ``lf.ticket(lf.rewound(attached.state, attached.anchor))``.
        """
        return ticket(self.state)

    def next_round(self) -> Count:
        """Begin the next round of the plan: prune, and rewind. Returns how many weights remain.

        Raises UserError where the plan has no further round, or no weight would be left.
        """
        step, change = self._next()
        if change is None:
            raise UserError(f"next_round: the plan has no round after round {self.round}")
        if takes_gradient(change):
            raise UserError(f"next_round: round {self.round + 1} takes the gradient of step {step}, so it begins there")
        self._begin(change)
        self._look_ahead()
        return count(self.masks)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the loop needs besides the module's, optimiser's and scheduler's own state.

        It holds tensors and plain containers, so that ``torch.load(weights_only=True)`` reads it.
        """
        return {
            "step": self.step,
            "round": self.round,
            "begun": begun(self._plan, self.round),
            "masks": self.masks,
            "anchor": None if self._anchor is None else self._anchor._asdict(),
            "fresh": self._fresh,
            "schedules": copy.deepcopy(self._schedules.noted),
            "schedule_due": self._schedules.due,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`, before or after the module's and the optimiser's.

        All ranks do so together. Raises UserError for one of another network or plan.
        """
        where = "load_state_dict"
        if not isinstance(state_dict, Mapping) or not {*self.state_dict()} <= {*state_dict}:
            raise UserError(f"{where}: state_dict must be what state_dict() returned, not {described(state_dict)}")
        difference = leaf_difference(dict(state_dict["masks"]), self.masks)
        if difference is not None:
            raise UserError(f"{where}: its masks are of another network: {difference}")
        check_begun(where, self._plan, state_dict["round"], state_dict["begun"])
        check_equal_masks(state_dict["masks"], self._loop.ranks, where)
        anchor = state_dict["anchor"]
        self.step, self.round = state_dict["step"], state_dict["round"]
        self._fresh = tree_map(self._to_device, state_dict["fresh"])
        self._anchor = None if anchor is None else tree_map(self._to_device, TrainState(**anchor))
        self._schedules.noted = copy.deepcopy(state_dict["schedules"])
        self._schedules.due = state_dict["schedule_due"]
        self._set_masks(state_dict["masks"])
        self._look_ahead()

    def detach(self) -> None:
        """Remove all hooks; the weights stay as they are."""
        self._held.remove()
        for handle in self.handles:
            handle.remove()

    def __enter__(self) -> Attached:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.detach()

    def __repr__(self) -> str:
        return f"Attached(step={self.step}, round={self.round}, {count(self.masks)})"

    def _to_device(self, leaf: Any) -> Any:
        """A leaf of a checkpoint where the module is; numbers (an optimiser's steps) stay where they are."""
        device = next(iter(self._loop.params.values())).device
        return leaf.to(device) if isinstance(leaf, Tensor) and leaf.ndim else leaf

    def _now(self) -> TrainState:
        self._held.settle()
        self._loop.check()
        params = {name: leaf.detach() for name, leaf in self._loop.params.items()}
        masks = self.masks
        device = next(iter(params.values())).device
        opt = state_tree(self._loop.optimizers, self._loop.params)
        return TrainState(
            apply_masks(params, masks), self._loop.buffers(), masks, opt, torch.tensor(self.step, device=device)
        )

    def _next(self) -> tuple[int | None, Change | None]:
        """(the step at which the next round begins by itself, its change); None where there is none."""
        if callable(self._plan):
            return None, self._plan
        return self._plan[self.round] if self.round < len(self._plan) else (None, None)

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        if within_step(optimizer):
            return None
        if self._loop.schedulers:
            self._schedules.before_step(self.step, note=self.step in (0, self._anchor_step))
        if not self._waits:
            self._held.mask_gradients()
        elif not any(map(callable, (*args, *kwargs.values()))):
            self._take_gradient()
        else:
            return tuple(map(self._taking, args)), {name: self._taking(value) for name, value in kwargs.items()}
        return None

    def _take_gradient(self) -> None:
        self._gradient = self._held.whole_gradients()
        self._held.mask_gradients()

    def _taking(self, value: Any) -> Any:
        """A closure that also takes the gradient; other arguments of a step as they are."""

        def closure() -> Any:
            loss = value()
            self._take_gradient()
            return loss

        return closure if callable(value) else value

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        skipped = getattr(optimizer, "found_inf", None)  # a GradScaler's, for a fused optimiser
        if (skipped is not None and bool(skipped)) or within_step(optimizer):
            return
        self.step += 1
        self._held.stepped(mixes=self._mixes)
        if self.step >= self._awaited:
            self._arrive()

    def _arrive(self) -> None:
        """What happens at the step of now: the anchor is taken, and the next round begins if it is due."""
        if self._anchor is None and self.step == self._anchor_step:
            self._anchor = self.state
        step, change = self._next()
        if change is not None and step == self.step:
            self._begin(change)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Check that the next round can be reached; whether it needs the next step's gradient; what step to await."""
        step, change = self._next()
        self._check_order(self.round, self.step)
        self._waits = change is not None and step == self.step + 1 and takes_gradient(change)
        self._held.wait(self._waits)
        coming = [self._anchor_step] if step is None else [self._anchor_step, step - 1, step]
        self._awaited = min((each for each in coming if each > self.step), default=math.inf)

    def _begin(self, change: Change) -> None:
        if self._rewind is not None and self._anchor is None:
            raise UserError(f"rewind: round {self.round + 1} begins before step {self._anchor_step} of the anchor")
        new = self._changed(self._now(), change, self._anchor)
        step = int(new.step)
        if step != self.step:
            self._schedules.check(step)
        with torch.no_grad():
            for leaves, theirs in ((self._loop.params, new.params), (self._loop.buffers(), new.buffers)):
                for name, leaf in leaves.items():
                    leaf.copy_(theirs[name])
        put_state(self._loop.optimizers, self._loop.params, new.opt, self._fresh)
        self._set_masks(new.masks)
        self.round += 1
        if step != self.step:
            self.step = step
            self._schedules.rewind(step)

    def _set_masks(self, masks: Masks) -> None:
        self._held.set(masks)
        opt = state_tree(self._loop.optimizers, self._loop.params)
        put_state(self._loop.optimizers, self._loop.params, masked_like(opt, self.masks), self._fresh)

    def _changed(self, state: TrainState, change: Change, anchor: TrainState | None) -> TrainState:
        """The state after a change and its rewinding. Raises UserError where it is another network's, or empty."""
        gradient = [self._gradient] if takes_gradient(change) else []
        with seeded_generators(key(0, "pruning", self.round + 1), state.step.device):
            new = change(state, *gradient)
            if self._rewind is not None and anchor is not None:
                new = self._rewind(new, anchor)
        if not isinstance(new, TrainState):
            raise ArgumentError(f"plan: a change returned {described(new)} (expected a TrainState)")
        for ours, theirs in zip(state[:3], new[:3], strict=True):
            difference = leaf_difference(theirs, ours)
            if difference is not None:
                raise UserError(f"plan: a change returned another network: {difference}")
        check_equal_masks(new.masks, self._loop.ranks, f"plan: round {self.round + 1}")
        if not count(new.masks).kept:
            raise UserError(f"plan: no weight is left in round {self.round + 1}")
        return new

    def _try_next(self) -> None:
        """Try the next change on the network of now, so that a plan which can't work is refused before training."""
        step, change = self._next()
        self._gradient = self._held.whole_gradients()
        if change is not None and step != self.step:
            now = self.state
            at = [now._replace(step=torch.full_like(now.step, each)) for each in (step or 0, self._anchor_step)]
            self._check_order(1, int(self._changed(at[0], change, at[1]).step))

    def _check_order(self, rounds: int, step: int) -> None:
        """Raise UserError where the round after so many begins at a step that has passed."""
        if not callable(self._plan) and rounds < len(self._plan) and self._plan[rounds][0] <= step:
            begins = self._plan[rounds][0]
            raise UserError(f"plan: round {rounds + 1} begins at step {begins}, but round {rounds} continues at {step}")
