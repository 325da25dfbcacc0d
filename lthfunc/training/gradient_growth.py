"""Weights that grow by the size of their gradient on one batch, as RigL's do."""

from __future__ import annotations

from typing import NoReturn

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.training.batches import stored_batches
from lthfunc.training.results import GradientGrowth
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch, Dataset


@public
def gradient_growth(data: Dataset, batch_size: int, seed: int, *counters: int | str) -> GradientGrowth:
    """Grow the pruned weights of the largest gradients on a batch, as RigL does (Evci et al. 2020, alg. 1).

    What `MaskUpdates.exchange` gives where the sparse engine trains, as in `train_packed`, whatever the loss: it takes
    the gradients itself, some rows of a layer at a time, and keeps none for every pruned weight. data: the data set.
    batch_size: examples of the batch; at most those of a training step. seed, counters: decide which these are, as
    ``now.seed, now.step`` do. Returns the growth; applying it raises UserError in trainings without such an engine.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> def exchange(network, now):
    ...     return lf.gradient_growth(data, 2, now.seed, now.step), 0.3
    >>> updates = lf.MaskUpdates((2, 4), lambda state, now: state, exchange=exchange)
    >>> net = nn.Sequential(nn.Linear(4, 50), nn.ReLU(), nn.Linear(50, 2))
    >>> train = lf.train_packed(net, data, optimizer=lf.adam(1e-3), steps=5, batch_size=2, updates=updates)
    >>> train(lf.init_packed(net, density=0.1))
    PackedState(30 of 300 weights remain, step 5)
    """
    return growth_by(check_data(data), batch_size, seed, *counters)


def growth_by(data: Dataset, batch_size: int, seed: int, *counters: int | str) -> GradientGrowth:
    """The same of a data set that was checked already."""

    def batch() -> Batch:
        return stored_batches(data, batch_size, 1, key(seed, "growth", *counters))[0]

    return GradientGrowth(_no_scores, batch)


def _no_scores() -> NoReturn:
    raise UserError(
        "gradient_growth: this training has no engine that takes pruned weights' gradients (expected the sparse "
        "engine, cross entropy or a batch no larger than a step's, and gradients that are finite)"
    )
