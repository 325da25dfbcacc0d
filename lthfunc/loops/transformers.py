"""Pruning as a callback of Hugging Face transformers."""

from __future__ import annotations

import math
from typing import Any

from transformers.trainer import TrainerCallback
from transformers.trainer_utils import has_length

from lthfunc.distributed.collectives import current_collectives
from lthfunc.errors import UserError
from lthfunc.loops.attached import Attached
from lthfunc.loops.optimizer_checkpoints import keep_in_optimizer, taken_from_optimizer
from lthfunc.loops.torch_optimizers import within
from lthfunc.loops.trainer_rounds import Trained, TrainerRounds


class TransformersPruning(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Prunes in rounds of a Trainer's epochs or steps (`transformers_callback`).

    A callback of this Trainer is told neither the folder of a checkpoint nor when it is read, so that the optimiser's
    state carries the masks.
    """

    def __init__(self, rounds: TrainerRounds) -> None:
        self._rounds = rounds

    @property
    def attached(self) -> Attached | None:
        """What is pruned; None before training."""
        return self._rounds.attached

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, lr_scheduler: Any = None,
        train_dataloader: Any = None, **more: Any,
    ) -> None:  # fmt: skip
        """Attach. Weights, optimiser and schedule have been restored from a checkpoint by now."""
        where = self._rounds.name
        if args.load_best_model_at_end and self._rounds.masks_change:
            raise UserError(f"{where}: load_best_model_at_end would bring back weights of another round; leave it out")
        optimizer = within(optimizer)
        saved = taken_from_optimizer(optimizer)
        if saved is None and state.global_step > 0:
            raise UserError(f"{where}: the checkpoint has no masks; it was saved without this callback")
        trained = Trained(
            model, [optimizer], [lr_scheduler], state.max_steps,
            len(train_dataloader) if has_length(train_dataloader) else math.inf, args.gradient_accumulation_steps,
            current_collectives(),
        )  # fmt: skip
        self._rounds.begin(trained, saved)
        if self.attached is not None:
            self.attached.handles += keep_in_optimizer(optimizer, self._rounds)

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin the next round if it is due."""
        self._rounds.advance(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Detach."""
        self._rounds.end()
