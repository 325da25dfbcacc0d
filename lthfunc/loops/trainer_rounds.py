"""Rounds of a trainer's callback: each lasts so many of the trainer's epochs or steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError, invalid
from lthfunc.loops.attach import attach
from lthfunc.loops.attached import Attached
from lthfunc.loops.plans import LoopPlan, Rewind, checked_plan
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.rng import key


class Trained(NamedTuple):
    """What a trainer trains, for how many steps of its optimiser, and how many batches an epoch has; inf where that is
    open.

    optimizers: in the order in which they step; schedulers: of their learning rates; accumulated: batches of a step, of
    which the last of an epoch may have fewer, or None where that changes; ranks: those that train it.
    """

    module: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    schedulers: Sequence[Any]
    steps: float = math.inf
    batches: float = math.inf
    accumulated: int | None = 1
    ranks: Collectives | None = None

    def steps_per_epoch(self, name: str) -> int:
        """Steps of the optimiser in an epoch. Raises UserError, which begins with a name, where that is unknown."""
        if math.isinf(self.batches):
            raise UserError(f"{name}: epochs: these data have no length; give steps")
        if self.accumulated is None:
            raise UserError(
                f"{name}: epochs: their steps differ, since the number of accumulated batches changes; give steps"
            )
        return math.ceil(self.batches / self.accumulated)


class TrainerRounds:
    """The rounds of a trainer's callback, whose module is attached while it trains.

    name: of the function that made the callback, for errors. plan and the rest: as of `attach`. epochs, steps: how long
    the network of a round is trained from its step 0 on, so that one that is rewound to a later step takes fewer; one
    that is not rewound takes as many as the first. None for a list of (step, transformation). names: prune_only,
    never_prune.
    """

    def __init__(
        self, name: str, plan: LoopPlan, epochs: int | None, steps: int | None, rewind: Rewind | None, anchor_step: int,
        **names: Sequence[str],
    ) -> None:  # fmt: skip
        plan = checked_plan(name, plan)
        if callable(plan) and (epochs is None) == (steps is None):
            raise UserError(f"{name}: give epochs or steps, how long each round lasts")
        if not callable(plan) and (epochs, steps) != (None, None):
            raise UserError(f"{name}: epochs and steps are for a transformation, and this plan has steps of its own")
        self.name = name
        self.attached: Attached | None = None
        self._plan, self._rewind, self._anchor_step, self._names = plan, rewind, anchor_step, names
        self._given = {"epochs": epochs, "steps": steps}
        self._length = math.inf
        #: The trainer's step at which the network of this round would have been at step 0; where nothing was rewound,
        #: at which the round began.
        self._origin = 0

    @property
    def masks_change(self) -> bool:
        """Whether they do so after the first step."""
        return callable(self._plan) or any(step > 0 for step, _ in self._plan)

    def begin(self, trained: Trained, state_dict: Any = None) -> None:
        """Attach what is trained. state_dict: of this class, to continue from; the module has its weights already.

        Raises UserError for a plan that doesn't fit the trainer, and for a state_dict of another one.
        """
        self.end()
        self._length, self._origin = self._steps_of_a_round(trained), 0
        if state_dict is not None:
            self._continue(state_dict)
        names: Any = self._names
        self.attached = attach(
            trained.module, trained.optimizers, self._plan, rewind=self._rewind, anchor_step=self._anchor_step,
            scheduler=trained.schedulers, ranks=trained.ranks, state_dict=state_dict and state_dict["attached"],
            **names,
        )  # fmt: skip
        last = self._last_begin(self.attached)
        if last > trained.steps:
            self.end()
            raise UserError(f"{self.name}: plan: its last round begins after {last} steps of {trained.steps:g}")

    def advance(self, step: int) -> None:
        """Begin the next round if it is due. step: how many the trainer has taken."""
        if self.attached is not None and step - self._origin >= self._length:
            trained = self.attached.step
            self.attached.next_round()
            rewound = self.attached.step < trained
            self._origin = step - self.attached.step if rewound else step

    def end(self) -> None:
        """Leave the trainer's module as it is."""
        if self.attached is not None:
            self.attached.detach()

    def state_dict(self) -> dict[str, Any]:
        """What the trainer's checkpoint has to hold; {} before training."""
        if self.attached is None:
            return {}
        return {**self._given, "origin": self._origin, "attached": self.attached.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict` while attached."""
        self._continue(state_dict)
        if self.attached is not None:
            self.attached.load_state_dict(state_dict["attached"])

    def _continue(self, state_dict: Mapping[str, Any]) -> None:
        for what, given in self._given.items():
            if state_dict[what] != given:
                raise UserError(f"{self.name}: {what} is {given}, and was {state_dict[what]} in the checkpoint")
        self._origin = state_dict["origin"]

    def _steps_of_a_round(self, trained: Trained) -> float:
        """Raises UserError where that is unknown, or no round would follow."""
        for what, given in self._given.items():
            if given is not None:
                each = trained.steps_per_epoch(self.name) if what == "epochs" else 1
                if given * each >= trained.steps:
                    most = f"fewer than the trainer's {trained.steps / each:g}"
                    raise invalid(f"{self.name}: {what}", given, most)
                return given * each
        return math.inf

    def _last_begin(self, attached: Attached) -> int:
        """How many steps the optimiser takes until the last round of a list begins, its rewinding included."""
        begins = [] if callable(self._plan) else [step for step, _ in self._plan]
        if self._rewind is None or len(begins) < 2:
            return max(begins, default=0)
        state = attached.state
        at = [state._replace(step=torch.full_like(state.step, step)) for step in (begins[1], self._anchor_step)]
        with seeded_generators(key(0, "pruning", 1), state.step.device):
            again = int(self._rewind(at[0], at[1]).step)
        return begins[-1] if again == begins[1] else sum(begins) - again * (len(begins) - 1)
