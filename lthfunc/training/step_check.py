"""A trial step on a few examples before training begins, where a module or function is not this library's."""

from __future__ import annotations

import torch

from lthfunc.errors import UserError
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.engines.interface import Work
from lthfunc.training.steps import (
    Carry,
    is_library_code,
    make_loop_body,
    make_train_step,
    objective_of,
    unmeasured,
    with_optimizer,
)
from lthfunc.trees.augmenting import changes_targets, is_library_augment
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.model import init
from lthfunc.trees.module_errors import failing, no_gradient_message
from lthfunc.trees.ops import clone, scaled
from lthfunc.trees.rng import counter_key
from lthfunc.trees.side_effects import in_either_dtype
from lthfunc.trees.types import Batch, Buffers, Dataset, Params, TrainState

#: The most examples of the trial step.
_EXAMPLES = 8


def check_step(work: Work, data: Dataset, batch_size: int) -> None:
    """Take a training step and an evaluation, and discard them.

    Raises UserError where they fail, with the user's line at fault.
    """
    if is_library_code(work) and (work.augment is None or is_library_augment(work.augment)):
        return
    model = work.model
    parts = parts_of_batch(work.optimizer)
    count = min(batch_size, max(_EXAMPLES // parts, 1) * parts)
    batch = clone((data.train.x[:count], data.train.y[:count]))
    # Mixed targets are of another kind, which a loss may not take.
    mixing = work.augment if changes_targets(work.augment) else None
    metric = work.metric if mixing is None else unmeasured
    step = make_train_step(model, work.loss, work.optimizer, work.precision, metric)
    device = batch[0].device

    def tried(params: Params, buffers: Buffers) -> None:
        with torch.no_grad(), seeded_generators(0, device):
            state = with_optimizer(start._replace(params=params, buffers=buffers), work.optimizer)
            sums = torch.zeros(1, dtype=torch.float64, device=device)
            make_loop_body(step, work.scale, mixing)(Carry(state, counter_key(0, "step").to(device), sums), batch)
            work.evaluate(state.params, state.buffers, batch)
            _check_reached(work, state, batch)

    start = init(model, 0, device)
    with failing(f"{model.name} cannot be trained", model.training, model.evaluating):
        in_either_dtype(tried, scaled(batch[0], work.scale), start.params, start.buffers)


def _check_reached(work: Work, state: TrainState, batch: Batch) -> None:
    """Raise UserError where the loss depends on no parameter, so that a step would change none of them."""
    objective = objective_of(work)
    params, x = clone(state.params), scaled(batch[0], work.scale)
    with torch.enable_grad():
        tracked = {name: leaf.requires_grad_().clone() for name, leaf in params.items()}
        try:
            reached = objective(tracked, state.buffers, clone((x, batch[1])))[0].requires_grad
        except UserError:
            raise
        except Exception:
            return  # what PyTorch's own autograd refuses is not asked of it; the step tells what it can't do
    if not reached:
        raise UserError(no_gradient_message(f"outputs of {work.model.name}"))
