"""Pruning as a callback of Lightning."""

from __future__ import annotations

import math
import sys
from typing import Any

from lthfunc.errors import UserError
from lthfunc.loops.attached import Attached
from lthfunc.loops.trainer_rounds import Trained, TrainerRounds

# Lightning comes as two packages, each with its own classes: that of the user's Trainer is imported already.
if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning.callbacks import Callback, GradientAccumulationScheduler
else:
    from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler


class LightningPruning(Callback):  # type: ignore[misc, unused-ignore]
    """Prunes in rounds of a Trainer's epochs or steps (`lightning_callback`)."""

    def __init__(self, rounds: TrainerRounds) -> None:
        self._rounds = rounds
        self._saved: dict[str, Any] | None = None

    @property
    def attached(self) -> Attached | None:
        """What is pruned; None before training."""
        return self._rounds.attached

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach. Weights have been restored from a checkpoint by now, and optimisers have not."""
        saved, self._saved = self._saved, None
        if saved is None and trainer.ckpt_path is not None:
            raise UserError(
                f"{self._rounds.name}: {trainer.ckpt_path} has no masks; it was saved without this callback"
            )
        if saved is None and trainer.global_step > 0:  # fit once more
            saved = self._rounds.state_dict() or None
        schedulers = [each.scheduler for each in trainer.lr_scheduler_configs]
        steps = trainer.estimated_stepping_batches  # which also finds the length of the data
        batches, accumulated = trainer.num_training_batches, _accumulated(trainer)
        if trainer.max_epochs != -1 and math.isfinite(batches):  # since it knows no GradientAccumulationScheduler
            whole = sum(math.ceil(batches / each) for each in accumulated)
            steps = whole if trainer.max_steps == -1 else min(whole, trainer.max_steps)
        if trainer.fast_dev_run:  # a few batches, of whatever the plan is for
            steps = -1
        self._rounds.begin(
            Trained(
                trainer.model, trainer.optimizers, schedulers, steps if steps >= 0 else math.inf, batches,
                accumulated[0] if len({*accumulated}) == 1 else None,
            ),
            saved,
        )  # fmt: skip

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin the next round if it is due."""
        self._rounds.advance(trainer.global_step)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Detach."""
        self._rounds.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Detach."""
        self._rounds.end()

    def state_dict(self) -> dict[str, Any]:
        """For the Trainer's checkpoint."""
        return self._rounds.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the Trainer's checkpoint, until training begins."""
        self._saved = state_dict


def _accumulated(trainer: Any) -> list[int]:
    """The batches of a step of the optimiser: in each epoch, or at first and after each change in endless training."""
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            epochs = callback.epochs if trainer.max_epochs == -1 else range(max(1, trainer.max_epochs))
            return [callback.get_accumulate_grad_batches(epoch) for epoch in epochs]
    return [trainer.accumulate_grad_batches] * max(1, trainer.max_epochs)
