"""Training where no rank holds the whole network: params, masks and optimiser state are sharded.

The params are gathered for a step and discarded after it; each rank keeps its shard of the summed gradient and updates
its shard of the state with it, as ZeRO and FSDP do (Rajbhandari et al. 2020, sec. 5).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad_and_value

from lthfunc.arguments import public
from lthfunc.distributed.collectives import Collectives, like_dtensors, local_shards
from lthfunc.distributed.dtensors import shard_layout
from lthfunc.distributed.sync_batchnorm import with_sync_batchnorm
from lthfunc.errors import UserError
from lthfunc.training.accumulation import over_parts, parts_of_batch
from lthfunc.training.chain import ChainContext, masked, updated
from lthfunc.training.losses import Loss, Metric, accuracy
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import Precision
from lthfunc.training.steps import Metrics, Work, objective_of
from lthfunc.trees.model import Model
from lthfunc.trees.types import Batch, Buffers, Params, TrainState


@public
def make_sharded_step(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    collectives: Collectives,
    precision: Precision = "fp32",
    metric: Metric = accuracy,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Make a pure step on shards: (this rank's shard of a state, its part of the batch) -> (shard, metrics).

    model, loss, optimizer, precision, metric: as `make_train_step` takes them. collectives: of the ranks, each with
    equally many examples. Shards are DTensors (`sharded`), or plain tensors cut as those are. Returns the step;
    together, the shards become what `make_train_step` makes of the whole state and batch, up to rounding. Raises
    UserError for an optimiser whose updates depend on other weights (Muon), which may lie on other ranks.

    >>> from lthfunc.distributed.collectives import SINGLE_RANK
    >>> model, optimizer = lf.from_module(nn.Linear(4, 2)), lf.sgd(0.1)
    >>> step = lf.make_sharded_step(model, lf.cross_entropy, optimizer, SINGLE_RANK)
    >>> state = lf.with_optimizer(lf.init(model), optimizer)
    >>> state, metrics = step(state, (torch.randn(3, 4), torch.tensor([0, 1, 1])))
    >>> sorted(metrics)
    ['accuracy', 'loss']
    """
    if optimizer.mixes:
        raise UserError("shards: an optimiser whose updates mix a layer's weights cannot be sharded")
    layout = shard_layout(model.init(0)[0], collectives.world_size)
    synced = with_sync_batchnorm(model, collectives)
    objective = objective_of(Work(synced, loss, optimizer, None, None, precision, metric))
    gradient = over_parts(grad_and_value(objective, has_aux=True), parts_of_batch(optimizer))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params, masks, opt = local_shards(state.params), local_shards(state.masks), local_shards(state.opt)

        def gradient_at(params: Params) -> tuple[Params, Tensor, Tensor, Buffers]:
            whole = layout.wholes(collectives.all_gather(layout.part(params)))
            # Masks are in shards, and a loss's context has whole ones.
            grads, (value, (correct, buffers)) = gradient(whole, state.buffers, batch, None, state.step)
            mine = layout.mine(collectives.reduce_scatter(layout.parts_of(grads)) / collectives.world_size, params)
            return masked(mine, masks), value, correct, buffers

        def total(value: Tensor) -> Tensor:
            return collectives.all_reduce(value.reshape(1))[0]

        grads, value, correct, buffers = gradient_at(params)
        context = ChainContext(params, state.step, masks, buffers, lambda params: gradient_at(params)[0], total)
        params, opt = updated(optimizer, grads, opt, context)
        both = collectives.all_reduce(torch.stack([value.double(), correct.double()])) / collectives.world_size
        after = TrainState(
            like_dtensors(params, state.params), buffers, state.masks, like_dtensors(opt, state.opt), state.step + 1
        )
        return after, {"loss": both[0].to(value.dtype), "accuracy": both[1]}

    return step
