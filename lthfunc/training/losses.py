"""Losses and metrics: functions (outputs, targets) -> scalar, the mean over the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lthfunc.argument_hints import described
from lthfunc.arguments import public
from lthfunc.errors import ArgumentError, UserError
from lthfunc.printable import dtype_and_shape
from lthfunc.trees.outputs import own_loss, prediction

#: (outputs, targets) -> a scalar, the mean over the batch. A user's loss may take any tree of outputs; those here take
#: the tensor that `prediction` finds in it. With a third parameter `context` it gets a `LossContext`.
Loss = Callable[..., Tensor]
#: (outputs, targets) -> a scalar; higher is better and 1 is the maximum, unless a metric says otherwise (`perplexity`).
Metric = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean over the batch.

    outputs: (n, classes), or (n, length, classes) for a class of each token. targets: int64 (n,) or (n, length); or
    probabilities, floats of the outputs' shape. A loss that the network returns itself, without logits, is taken as it
    is.

    >>> lf.cross_entropy(torch.tensor([[2.0, 2.0]]), torch.tensor([0]))
    tensor(0.6931)
    """
    if (own := own_loss(outputs)) is not None:
        return own
    return _cross_entropy("cross_entropy", outputs, targets, 0.0)


@public
def label_smoothed_cross_entropy(label_smoothing: float) -> Loss:
    """Cross entropy with the share `label_smoothing` of each target spread over all classes.

    Szegedy et al. 2016, sec. 7. Returns a loss. Raises UserError for a share outside [0, 1].

    >>> lf.label_smoothed_cross_entropy(0.2)(torch.tensor([[2.0, 2.0]]), torch.tensor([0]))
    tensor(0.6931)
    """

    return lambda outputs, targets: _cross_entropy("label_smoothed_cross_entropy", outputs, targets, label_smoothing)


def _cross_entropy(name: str, outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
    outputs = _classes_from(name, outputs, targets)
    return F.cross_entropy(outputs if outputs.ndim == 2 else outputs.mT, targets, label_smoothing=label_smoothing)


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of outputs and targets, both (n, numbers).

    >>> lf.mean_squared_error(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor(4.)
    """
    return F.mse_loss(_numbers_from("mean_squared_error", outputs, targets), targets)


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute error of outputs and targets, both (n, numbers).

    >>> lf.mean_absolute_error(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor(2.)
    """
    return F.l1_loss(_numbers_from("mean_absolute_error", outputs, targets), targets)


def huber(outputs: Tensor, targets: Tensor) -> Tensor:
    """Huber loss (Huber 1964): squared up to an error of 1, linear beyond; outputs and targets are (n, numbers).

    >>> lf.huber(torch.tensor([[3.0]]), torch.tensor([[1.0]]))
    tensor(1.5000)
    """
    return F.huber_loss(_numbers_from("huber", outputs, targets), targets)


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of examples whose largest output is the target; outputs are (..., classes), targets (...).

    NaN for targets that are numbers, since they have no classes.

    >>> lf.accuracy(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    tensor(0.5000, dtype=torch.float64)
    """
    outputs = prediction(outputs)
    if _tensor("accuracy", targets).is_floating_point():
        return outputs.new_full((), math.nan, dtype=torch.float64)
    _check_each("accuracy", outputs, targets)
    return (outputs.argmax(-1) == targets).double().mean()


@public
def top_k(count: int) -> Metric:
    """The share of examples whose target is among the `count` largest outputs.

    Returns a metric.

    >>> lf.top_k(2)(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([2]))
    tensor(1., dtype=torch.float64)
    """

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = prediction(outputs)
        _check_each("top_k", outputs, _tensor("top_k", targets))
        best = outputs.topk(min(count, outputs.shape[-1]), -1).indices
        return (best == targets.unsqueeze(-1)).any(-1).double().mean()

    return metric


@public
def r2(variance: Tensor) -> Metric:
    """R², the share of the targets' variance that outputs explain.

    variance: (numbers,), of the training targets, so that the metric is a mean over examples. Returns a metric.

    >>> lf.r2(torch.tensor([4.0]))(torch.tensor([[1.0]]), torch.tensor([[3.0]]))
    tensor(0., dtype=torch.float64)
    """

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = _numbers_from("r2", outputs, targets)
        return (1 - (outputs - targets).square() / variance.to(outputs.device)).double().mean()

    return metric


def _classes_from(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The output tensor for targets that are classes, or probabilities of all classes.

    Raises UserError for other floats: with one output their cross entropy would be 0, whatever they are.
    """
    found = prediction(outputs)
    if not _tensor(name, targets).is_floating_point():
        _check_each(name, found, targets)
    elif found.shape != targets.shape or found.shape[-1] == 1:
        raise UserError(
            f"loss: {name} requires classes, but the targets are numbers, {dtype_and_shape(targets)}; use "
            "lf.mean_squared_error, or y.long() for classes"
        )
    return found


def _numbers_from(name: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The output tensor. Raises UserError for another shape than the targets', which would be broadcast."""
    found = prediction(outputs)
    if found.shape != _tensor(name, targets).shape:
        raise UserError(
            f"{name}: outputs and targets must have the same shape; outputs are {dtype_and_shape(found)}, targets "
            f"{dtype_and_shape(targets)}"
        )
    return found


def _tensor(name: str, targets: Any) -> Tensor:
    if not isinstance(targets, Tensor):
        raise ArgumentError(f"{name}: targets must be a tensor, not {described(targets)}")
    return targets


def _check_each(name: str, outputs: Tensor, targets: Tensor) -> None:
    """Raise UserError unless there is one class for each row of outputs, since anything else would be broadcast."""
    if outputs.shape[:-1] != targets.shape or not outputs.ndim:
        instead = "; lf.pixel_cross_entropy and lf.mean_iou take a class per pixel" if targets.ndim == 3 else ""
        raise UserError(
            f"{name}: expected one class per row of outputs; outputs are {dtype_and_shape(outputs)}, targets "
            f"{dtype_and_shape(targets)}{instead}"
        )
