"""Accuracy of a program, and the difference between the outputs of two."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.training.evaluation import averaged, evaluate, from_means
from lthfunc.training.losses import Metric, accuracy
from lthfunc.training.steps import Metrics
from lthfunc.trees.ops import scaled
from lthfunc.trees.outputs import map_outputs, outputs_of
from lthfunc.trees.types import Batch, Dataset


def accuracy_of(
    program: nn.Module, data: Dataset, batch: int, device: torch.device | str = "cpu", metric: Metric = accuracy
) -> float:
    """Accuracy, or another metric, on the test set, in batches of one size.

    The last batch is padded with its first example, so that nothing is compiled for a smaller size.
    """

    def metrics_of(given: Batch) -> Metrics:
        x, y = given
        whole = scaled(_filled(x, batch), data.scale).clone()  # a module may change what it is given
        outputs = map_outputs(lambda part: part[: len(x)] if part.ndim and len(part) == batch else part, program(whole))
        found = averaged(metric)(outputs, y)
        return {"loss": found, "accuracy": found}

    with torch.no_grad():
        found = evaluate(metrics_of, data.test, torch.device(device), batch)
    return from_means(found, metric)[0].accuracy


def difference(got: Any, wanted: Any) -> float:
    """The largest difference between outputs, tensor by tensor, relative to the largest wanted one in each.

    Infinite where number or shapes of the tensors differ; infinities and NaNs must agree.
    """
    ours, theirs = outputs_of(got).tensors, outputs_of(wanted).tensors
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        return math.inf
    return max((_apart(*pair) for pair in zip(ours, theirs, strict=True)), default=0.0)


def _apart(got: Tensor, wanted: Tensor) -> float:
    got, wanted = got.detach().double(), wanted.detach().double()
    finite = wanted.isfinite()
    if not torch.equal(torch.where(finite, 0, got).nan_to_num(7e7), torch.where(finite, 0, wanted).nan_to_num(7e7)):
        return math.inf
    got, wanted = got[finite], wanted[finite]
    return float((got - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0) if wanted.numel() else 0.0


def _filled(x: Tensor, batch: int) -> Tensor:
    return x if len(x) == batch else torch.cat([x, x[:1].expand(batch - len(x), *x.shape[1:])])
