"""One training on several ranks: each takes its part of a step's batch, and what follows is the same on all of them.

The batch of a step is the same set of samples whatever the ranks, so losses agree with one rank's but for rounding. Of
the gradient only what can change a weight travels: where nothing is left, it is zero on every rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.printable import counted
from lthfunc.trees.types import Params, TrainState

#: What travels besides the gradient: the step's loss and metric.
_NUMBERS = 2


def rank_batch_size(batch_size: int, collectives: Collectives) -> int:
    """Examples of a batch that each rank takes. Raises UserError where they don't come out even."""
    ranks = collectives.world_size
    if batch_size % ranks:
        below = batch_size - batch_size % ranks
        sizes = " or ".join(str(size) for size in (below, below + ranks) if size)
        fewer = max(number for number in range(1, ranks) if batch_size % number == 0)
        raise UserError(
            f"batch_size: {batch_size} examples don't divide among {ranks} ranks; take {sizes}, or "
            f"{counted(fewer, 'rank')}"
        )
    return batch_size // ranks


def surviving_indices(state: TrainState) -> Tensor:
    """Where, among all gradients in one row and the step's two numbers behind them, something is to be exchanged.

    int64; as long as the weights that are left, all that no mask covers, and two.
    """
    ones = torch.ones((), dtype=torch.bool, device=state.step.device)
    kept = [
        state.masks[name].flatten() if name in state.masks else ones.expand(leaf.numel())
        for name, leaf in state.params.items()
    ]
    return torch.cat([*(mask.to(torch.bool) for mask in kept), ones.expand(_NUMBERS)]).nonzero().flatten()


def averaged_gradients(
    collectives: Collectives, grads: Params, numbers: tuple[Tensor, Tensor], index: Tensor
) -> tuple[Any, Any]:
    """(gradients, the two numbers): means over all ranks, gradients zero outside of the index."""
    flat = torch.cat([grad.flatten() for grad in grads.values()])
    row = torch.cat([flat, *(number.reshape(1).to(flat.dtype) for number in numbers)])
    mean = collectives.all_reduce_at(row, index) / collectives.world_size
    *parts, loss, metric = torch.split(mean, [*(grad.numel() for grad in grads.values()), 1, 1])
    found = {
        name: part.view(grad.shape).to(grad.dtype) for part, (name, grad) in zip(parts, grads.items(), strict=True)
    }
    first, second = numbers
    return found, (loss[0].to(first.dtype), metric[0].to(second.dtype))


def differentiable_sum(collectives: Collectives, vector: Tensor) -> Tensor:
    """`Collectives.all_reduce`, with a gradient: that of a sum over ranks is the sum of the gradients over ranks."""
    result: Tensor = _Total.apply(vector, collectives)
    return result


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(vector: Tensor, collectives: Collectives) -> Tensor:
        return collectives.all_reduce(vector)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.collectives = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return differentiable_sum(ctx.collectives, grad), None
