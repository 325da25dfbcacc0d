"""Pruning as a callback of Hugging Face transformers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
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
        self._module: nn.Module | None = None

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
        if saved is not None:
            _check_read(where, model, saved.get("weights", {}))
        self._module = model
        trained = Trained(
            model, [optimizer], [lr_scheduler], state.max_steps,
            len(train_dataloader) if has_length(train_dataloader) else math.inf, args.gradient_accumulation_steps,
            current_collectives(),
        )  # fmt: skip
        self._rounds.begin(trained, saved)
        if self.attached is not None:
            self.attached.handles += keep_in_optimizer(optimizer, self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Begin the next round if it is due. A Trainer that resumes at its end takes one step more, of the last one."""
        if state.global_step < state.max_steps:
            self._rounds.advance(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Detach."""
        self._rounds.end()

    def state_dict(self) -> dict[str, Any]:
        """For the optimiser's file."""
        return {**self._rounds.state_dict(), "weights": {} if self._module is None else _some_of(self._module)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the optimiser's file, while training."""
        self._rounds.load_state_dict(state_dict)


#: Weights of each parameter by which one that was read is told from one that wasn't.
_SOME = 16


def _some_of(module: nn.Module) -> dict[str, Tensor]:
    """A few weights of each parameter, from its first to its last."""
    found = {}
    for name, leaf in module.named_parameters():
        places = torch.linspace(0, leaf.numel() - 1, _SOME, dtype=torch.float64, device=leaf.device).long()
        found[name] = leaf.detach().flatten()[places].float().cpu()
    return found


def _check_read(where: str, module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Raise UserError where a module hasn't the weights of a checkpoint.

    A Trainer reads a checkpoint by the parameters' names and only logs those that it misses, but transformers saves
    some networks under the names of an earlier version. saved: `_some_of` the module as it was saved; files may have
    rounded them.
    """
    for name, now in _some_of(module).items():
        then = saved.get(name, now)
        if not torch.allclose(now, then.cpu(), rtol=2**-6, atol=2**-24, equal_nan=True):
            raise UserError(
                f"{where}: the Trainer has not read {name} from the checkpoint, which may have it under another name; "
                "make the network by from_pretrained(the checkpoint's folder), and resume again"
            )
