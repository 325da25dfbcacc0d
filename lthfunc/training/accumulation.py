"""Gradient accumulation: a batch passes through the network in parts, of whose gradients a step takes the mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.printable import counted
from lthfunc.training.chain import Part, numbers_of
from lthfunc.training.optimizers import Optimizer
from lthfunc.trees.types import Batch, Buffers, Params

#: (params, buffers, batch, …) -> (gradient, (loss, (metric, new buffers))).
Gradient = Callable[..., tuple[Params, Any]]


class AccumulateNumbers(NamedTuple):
    """The argument of `accumulate`."""

    parts: int


@public
def accumulate(count: int) -> Part:
    """Let a step take its batch in `count` parts, one after the other: a large batch in the memory of a small one.

    The gradient, loss and metric of the step are the means over the parts, so those of a loss that is a mean equal
    those of the whole batch; batch normalisation takes its statistics of each part by itself. `make_trainer` and
    `train` take a `batch_size` for each part, so that a step sees `count` times as many examples; the step of
    `make_train_step` divides the batch that it is given. Returns a part of a `chain`.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> optimizer = lf.chain(lf.accumulate(2), lf.sgd(0.1))
    >>> step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    >>> state = lf.with_optimizer(lf.init(model), optimizer)
    >>> int(step(state, (torch.randn(6, 4), torch.tensor([0, 1, 1, 0, 1, 1])))[0].step)
    1
    """
    return Part(
        "accumulate", lambda params, buffers: (), lambda grads, state, context: (grads, state),
        numbers=AccumulateNumbers(count),
    )  # fmt: skip


def parts_of_batch(optimizer: Optimizer) -> int:
    """In how many parts a step takes its batch."""
    return next((each.parts for each in numbers_of(optimizer) if isinstance(each, AccumulateNumbers)), 1)


def over_parts(gradient: Gradient, count: int) -> Gradient:
    """The same function of a batch, of whose examples it is called with the first share, the second …"""
    if count == 1:
        return gradient

    def mean(params: Params, buffers: Buffers, batch: Batch, *rest: Any) -> tuple[Params, Any]:
        size = len(batch[0])
        if size % count:
            raise UserError(f"accumulate: {counted(size, 'example')} don't divide into {count} equal parts")
        x, y = (torch.split(leaf, size // count) for leaf in batch)
        grads, (value, (metric, buffers)) = gradient(params, buffers, (x[0], y[0]), *rest)
        for part in zip(x[1:], y[1:], strict=True):
            more, (loss, (quality, buffers)) = gradient(params, buffers, part, *rest)
            grads = {name: leaf + more[name] for name, leaf in grads.items()}
            value, metric = value + loss, metric + quality
        return {name: leaf / count for name, leaf in grads.items()}, (value / count, (metric / count, buffers))

    return mean
