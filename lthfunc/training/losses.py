"""Losses and metrics: functions (outputs, targets) -> a scalar, the mean over the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.trees.outputs import own_loss, prediction

#: (outputs, targets) -> a scalar, the mean over the batch. Outputs may be any tree, for a loss of one's own; those
#: here take the tensor that `prediction` finds in it.
Loss = Callable[[Tensor, Tensor], Tensor]
#: The same; more is better, and 1 is the most (accuracy, say).
Metric = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs (n, classes), targets (n,); or, for every token, (n, length, classes) and (n, length).

    A loss that the network gives itself, and no logits beside it, counts as it is.
    """
    if (own := own_loss(outputs)) is not None:
        return own
    outputs = prediction(outputs)
    return F.cross_entropy(outputs, targets) if outputs.ndim == 2 else F.cross_entropy(outputs.mT, targets)


@public
def smoothed(share: float) -> Loss:
    """Cross entropy with `share` of each target spread over all classes (Szegedy et al. 2016, sec. 7)."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = prediction(outputs)
        if outputs.ndim > 2:
            outputs = outputs.mT
        return F.cross_entropy(outputs, targets, label_smoothing=share)

    return loss


def mean_squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets (n, numbers)."""
    return F.mse_loss(prediction(outputs), targets)


def mean_absolute(outputs: Tensor, targets: Tensor) -> Tensor:
    """Outputs and targets (n, numbers)."""
    return F.l1_loss(prediction(outputs), targets)


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Squared up to an error of 1, linear beyond (Huber 1964); outputs and targets (n, numbers)."""
    return F.huber_loss(prediction(outputs), targets)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Share whose largest output is the target; outputs (..., classes), targets (...)."""
    return (prediction(outputs).argmax(-1) == targets).double().mean()


@public
def top(count: int) -> Metric:
    """Share whose target is among the `count` largest outputs; all count where there are fewer classes."""

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = prediction(outputs)
        best = outputs.topk(min(count, outputs.shape[-1]), -1).indices
        return (best == targets.unsqueeze(-1)).any(-1).double().mean()

    return metric


def explained(variance: Tensor) -> Metric:
    """Share of the targets' variance that outputs explain, R². variance: (numbers,), of the training targets.

    Not below a batch's own R² by more than its variance differs; so it is a mean over examples.
    """

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - (prediction(outputs) - targets).square() / variance.to(outputs.device)).double().mean()

    return metric
