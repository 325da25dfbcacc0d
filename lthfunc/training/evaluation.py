"""Loss and accuracy over a whole split."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lthfunc.training.steps import EvalStep
from lthfunc.trees.types import Buffers, Params, Split

#: Large enough to keep two cores busy, small enough that a convolution's activations stay in a CPU's cache.
_CHUNK = 250


class Quality(NamedTuple):
    """Means over every example of a split, none left out."""

    loss: float
    accuracy: float


def evaluate(step: EvalStep, params: Params, buffers: Buffers, split: Split) -> Quality:
    """Mean loss and accuracy, weighted by chunk sizes, so that the last, smaller chunk counts right."""
    loss = accuracy = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for x, y in zip(torch.split(split.x, _CHUNK), torch.split(split.y, _CHUNK), strict=True):
            metrics = step(params, buffers, (x, y))
            loss = loss + metrics["loss"].double().cpu() * len(x)
            accuracy = accuracy + metrics["accuracy"].double().cpu() * len(x)
    return Quality(float(loss) / len(split.x), float(accuracy) / len(split.x))
