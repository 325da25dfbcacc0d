"""A network, data and settings as small as tests of single functions need."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lthfunc as lf
from lthfunc.experiments.config import Config, applied
from lthfunc.experiments.objective import decide_objective
from lthfunc.experiments.resolve import resolved
from lthfunc.trees.types import Dataset, TrainState

NET = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def settings(**changes: Any) -> Config:
    """Resolved as for `lthfunc methods`, some of which use `cycles` with any schedule."""
    return resolved(Config(**{"optimizer": "sgd", "lr": 0.4, **changes}), used=("cycles", "score_rounds"))


def decided(config: Config, data: Dataset) -> Config:
    """With the loss and the metric of the data's targets."""
    return applied(config, decide_objective(config, data))


def data(numbers: bool = False, count: int = 60) -> Dataset:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=random)
    y = x[:, :1] * 2 if numbers else torch.randint(0, 3, (count,), generator=random)
    cut = count // 3
    return lf.data.from_tensors("own", (x[:-cut], y[:-cut]), (x[-cut:], y[-cut:]), val=cut // 2)


def state_of(seed: int = 0) -> tuple[lf.Model, TrainState]:
    model = lf.from_module(NET)
    return model, lf.prune(density=0.8, score=lf.random_scores(5))(lf.init(model, seed))
