"""Loss and accuracy over a whole split, and metrics that are a function of a mean over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.training.losses import Metric
from lthfunc.training.steps import Metrics
from lthfunc.trees.types import Batch, Split

#: Examples at a time, of all networks together, and the fewest of each: enough for a product to reach its full rate,
#: but not so many that a large network's activations need much memory.
_CHUNK, _LEAST = 500, 100
#: On a GPU: FLOPs of all networks at a time, some milliseconds of work, so that launches are negligible, and the most
#: examples of each network. Networks with many FLOPs have large activations too.
_GPU_FLOPS, _GPU_MOST = 10**11, 8192


#: The attribute of a metric that `of_mean` sets.
_OF_MEAN = "of_mean"
F = TypeVar("F", bound=Metric)


class Evaluation(NamedTuple):
    """Means over all examples of a split; the metric may be a function of its mean (`of_mean`)."""

    loss: float
    accuracy: float


def of_mean(mean: Metric, after: Callable[[Tensor], Tensor]) -> Callable[[F], F]:
    """Declare that a metric over many examples is `after` of the mean of `mean` over them, not the mean of batches'."""

    def declared(metric: F) -> F:
        setattr(metric, _OF_MEAN, (mean, after))
        return metric

    return declared


def wrapped(wrap: Callable[[Metric], Metric], metric: Metric) -> Metric:
    """`wrap(metric)`; where the metric is declared with `of_mean`, so is the result, with its wrapped mean."""
    declared = getattr(metric, _OF_MEAN, None)
    return wrap(metric) if declared is None else of_mean(wrap(declared[0]), declared[1])(wrap(metric))


def averaged(metric: Metric) -> Metric:
    """What is averaged over the examples of a split for a metric: itself, unless it is declared with `of_mean`."""
    return cast("Metric", getattr(metric, _OF_MEAN, (metric,))[0])


def from_means(found: list[Evaluation], metric: Metric) -> list[Evaluation]:
    """Evaluations by a metric, from those in which `averaged` takes its place."""
    declared: tuple[Any, Callable[[Tensor], Tensor]] | None = getattr(metric, _OF_MEAN, None)
    if declared is None:
        return found
    means = torch.tensor([each.accuracy for each in found], dtype=torch.float64)
    return [each._replace(accuracy=value) for each, value in zip(found, declared[1](means).tolist(), strict=True)]


def chunk_for(networks: int) -> int:
    """Examples to evaluate at a time, with this many networks at once."""
    return max(_LEAST, _CHUNK // networks)


def chunk_on_gpu(networks: int, flops: int, examples: int) -> int:
    """The same on a GPU: a power of two, so that splits of many sizes share a program.

    flops: of one example in one network, 0 if unknown. examples: of the split.
    """
    wanted = min(_GPU_MOST, _GPU_FLOPS // (networks * flops)) if flops else 0
    fitting = min(max(chunk_for(networks), wanted), examples)
    return 1 << (fitting.bit_length() - 1)


def evaluate(
    metrics_of: Callable[[Batch], Metrics],
    split: Split,
    device: torch.device,
    chunk: int = _CHUNK,
    collectives: Collectives = SINGLE_RANK,
) -> list[Evaluation]:
    """Mean loss and accuracy, weighted by chunk size, so that the last, smaller chunk counts correctly.

    metrics_of: batch -> scalars, or one entry for each of several networks. The device is waited for once, at the end.
    collectives: of ranks that evaluate the same networks, each on its share of the chunks.
    """
    total = torch.zeros(2, 1, dtype=torch.float64, device=device)
    chunks = list(zip(torch.split(split.x, chunk), torch.split(split.y, chunk), strict=True))
    for x, y in chunks[collectives.rank :: collectives.world_size]:
        # Copies, since chunks are views of the caller's data and a module or metric may write into what it is given.
        metrics = metrics_of((x.to(device, copy=True), y.to(device, copy=True)))
        both = torch.stack([metrics["loss"].double().reshape(-1), metrics["accuracy"].reshape(-1)])
        total = total + both * len(x)
    if collectives.world_size > 1:
        total = collectives.all_reduce(total.flatten()).view(total.shape)
    return [Evaluation(loss, accuracy) for loss, accuracy in (total / len(split.x)).T.tolist()]
