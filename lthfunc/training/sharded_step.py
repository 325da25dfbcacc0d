"""Training where no rank holds the network: params, masks and optimiser state lie in parts, one on each rank.

The params are put together for a step and forgotten after it; of the gradient each rank keeps its part, summed over all
ranks, and updates its part of the state with it (as ZeRO and FSDP do; Rajbhandari et al. 2020, sec. 5).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import grad_and_value

from lthfunc.arguments import public
from lthfunc.distributed.collectives import Collectives, like_dtensors, local_shards
from lthfunc.distributed.shard_layout import shard_layout
from lthfunc.distributed.sync_batchnorm import with_sync_batchnorm
from lthfunc.errors import UserError
from lthfunc.training.losses import Loss, Metric, accuracy
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import Precision
from lthfunc.training.steps import Metrics, masked, objective_of
from lthfunc.trees.model import Model
from lthfunc.trees.types import Batch, TrainState


@public
def make_sharded_step(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    collectives: Collectives,
    precision: Precision = "fp32",
    metric: Metric = accuracy,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure step on parts: (this rank's parts of a state, its part of the batch) -> (parts, metrics of the batch).

    Parts are DTensors (`sharded`), or plain tensors cut as those are. Each rank has equally many examples. The parts
    together become what `make_train_step` makes of the whole state and batch, but for rounding.

    Raises UserError where an update depends on other weights (Muon's), which may lie elsewhere.
    """
    if optimizer.mixes:
        raise UserError("shards: an optimiser whose updates mix a layer's weights cannot work on parts of it")
    layout = shard_layout(model.init(0)[0], collectives.world_size)
    objective = objective_of(with_sync_batchnorm(model, collectives), loss, precision, metric)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, masks, opt = local_shards(state.params), local_shards(state.masks), local_shards(state.opt)
        whole = layout.wholes(collectives.all_gather(layout.part(params)))
        grads, (value, (correct, buffers)) = grad_and_value(objective, has_aux=True)(whole, state.buffers, batch)
        mine = layout.mine(collectives.reduce_scatter(layout.parts_of(grads)) / collectives.world_size, params)
        params, opt = optimizer.update(masked(mine, masks), opt, params, state.step)
        both = collectives.all_reduce(torch.stack([value.double(), correct.double()])) / collectives.world_size
        after = TrainState(
            like_dtensors(params, state.params), buffers, state.masks, like_dtensors(opt, state.opt), state.step + 1
        )
        return after, {"loss": both[0].to(value.dtype), "accuracy": both[1]}

    return step
