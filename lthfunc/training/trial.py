"""A step on a few examples before anything is trained, where a module or function is not of this library."""

from __future__ import annotations

import torch

from lthfunc.errors import UserError
from lthfunc.frames import first_line, place_of
from lthfunc.training.engines.interface import Work
from lthfunc.training.steps import (
    Carry,
    is_tidy,
    make_advance,
    make_eval_step,
    make_train_step,
    on_stored,
    with_optimizer,
)
from lthfunc.trees.model import init
from lthfunc.trees.ops import clone, in_dtype_of, scaled
from lthfunc.trees.outside import all_seeded
from lthfunc.trees.rng import counter_key
from lthfunc.trees.types import Dataset, TrainState

#: Examples of a batch that are tried.
_EXAMPLES = 8


def check_step(work: Work, data: Dataset, batch_size: int) -> None:
    """Take a training step and an evaluation, and forget them.

    Raises UserError where they fail, with the line of the user's own.
    """
    if is_tidy(work.model, work.loss, work.metric, work.optimizer):
        return None
    model = work.model
    count = min(batch_size, _EXAMPLES, len(data.train.x))
    batch = clone((data.train.x[:count], data.train.y[:count]))
    step = make_train_step(model, work.loss, work.optimizer, work.precision, work.metric)
    evaluate = on_stored(make_eval_step(model, work.loss, work.precision, work.metric), work.scale)
    device = batch[0].device

    def tried(state: TrainState) -> None:
        with torch.no_grad(), all_seeded(0, device):
            state = with_optimizer(state, work.optimizer)
            sums = torch.zeros(1, dtype=torch.float64, device=device)
            make_advance(step, work.scale)(Carry(state, counter_key(0, "step").to(device), sums), batch)
            evaluate(state.params, state.buffers, batch)

    state = init(model, 0, device)
    try:
        tried(state)
    except UserError:
        raise
    except Exception as error:
        others = in_dtype_of(scaled(batch[0], work.scale), state.params, state.buffers)
        if others is not None:  # states may be of the inputs' dtype instead of the module's
            try:
                return tried(state._replace(params=others[0], buffers=others[1]))
            except UserError:
                raise
            except Exception:
                pass  # what the module's own dtype led to is told
        what = first_line(error)
        hint = "; write weight.copy_(...) within torch.no_grad() instead" if "`.data`" in what else ""
        raise UserError(f"{model.name} cannot be trained{place_of(error)}: {what}{hint}") from error
