"""How often a program is right, and how far its outputs are from another's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lthfunc.training.evaluation import evaluate
from lthfunc.training.losses import Metric, accuracy
from lthfunc.training.steps import Metrics
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Batch, Dataset


def accuracy_of(
    program: nn.Module, data: Dataset, batch: int, device: torch.device | str = "cpu", metric: Metric = accuracy
) -> float:
    """Accuracy, or another metric, on the test set, in batches of one size.

    The last batch is filled up with its first example, so that no program is made ready for a size of its own.
    """

    def metrics_of(given: Batch) -> Metrics:
        x, y = given
        outputs: Tensor = program(scaled(_filled(x, batch), data.scale))[: len(x)]
        found = metric(outputs, y)
        return {"loss": found, "accuracy": found}

    with torch.no_grad():
        (quality,) = evaluate(metrics_of, data.test, torch.device(device), batch)
    return quality.accuracy


def difference(got: Any, wanted: Tensor) -> float:
    """The largest difference between outputs, relative to the largest wanted one."""
    return float((torch.as_tensor(got) - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0)


def _filled(x: Tensor, batch: int) -> Tensor:
    return x if len(x) == batch else torch.cat([x, x[:1].expand(batch - len(x), *x.shape[1:])])
