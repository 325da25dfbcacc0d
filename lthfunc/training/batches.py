"""Which examples a step sees: a permutation that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.ops import scaled
from lthfunc.trees.rng import first_of_permutation, permutation
from lthfunc.trees.types import Batch, Dataset, Split


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Full batches in `size` examples; the remainder of an epoch is left out (another permutation follows).

    Raises UserError where not even one batch fits.
    """
    if not 1 <= batch_size <= size:
        raise invalid("batch_size", batch_size, f"a whole number from 1 to {size}, the training examples")
    return size // batch_size


def _order(seed: int, epoch: int) -> tuple[int, str, int]:
    """The key of an epoch's permutation."""
    return seed, "order", epoch


class BatchOrder:
    """The examples of each step, as rows of indices; it caches the epoch that was last asked for."""

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        self._size, self._batch, self._seed = size, batch_size, seed
        self._per_epoch = steps_per_epoch(size, batch_size)
        self._epoch, self._rows = -1, torch.empty(0)

    def rows(self, start: int, stop: int) -> Tensor:
        """Indices of the examples of steps start … stop-1: int64 (stop - start, batch size), on the CPU."""
        parts = []
        while start < stop:
            epoch, first = divmod(start, self._per_epoch)
            if epoch != self._epoch:
                order = permutation(self._size, *_order(self._seed, epoch))[: self._per_epoch * self._batch]
                self._epoch, self._rows = epoch, order.view(self._per_epoch, self._batch)
            last = min(self._per_epoch, first + stop - start)
            parts.append(self._rows[first:last])
            start += last - first
        return torch.cat(parts)


def batches(split: Split, batch_size: int, seed: int, start: int, stop: int) -> Iterator[Batch]:
    """The batches of steps start … stop-1, as stored; a step always sees the same batch, wherever training began."""
    order = BatchOrder(len(split.x), batch_size, seed)
    for step in range(start, stop):
        index = order.rows(step, step + 1)[0].to(split.x.device)
        yield split.x.index_select(0, index), split.y.index_select(0, index)


@public
def sample_batches(data: Dataset, batch_size: int, count: int, seed: int = 0) -> list[Batch]:
    """Draw `count` training batches of `data` as a network takes them (scaled), for scores that look at data.

    No example is drawn twice in an epoch. batch_size: at most; a smaller training split makes smaller batches. seed:
    decides the order. Returns (inputs, targets) pairs.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> [x.shape for x, y in lf.sample_batches(data, batch_size=2, count=2, seed=0)]
    [torch.Size([2, 4]), torch.Size([2, 4])]
    """
    data = check_data(data)
    return [(scaled(x, data.scale), y) for x, y in stored_batches(data, batch_size, count, seed)]


#: The share of an epoch's batches up to which they are drawn without a permutation of all examples: one in so many.
_FEW = 20


def stored_batches(data: Dataset, batch_size: int, count: int, seed: int) -> list[Batch]:
    """The batches of `sample_batches`, as the data set stores them."""
    size = min(batch_size, data.examples)
    if data.stream is not None:
        with closing(data.stream.batches(size, [seed], 0)) as found:
            return [batch for (batch,) in islice(found, count)]
    if _FEW * count > steps_per_epoch(data.examples, size):
        return list(batches(data.train, size, seed, 0, count))
    x, y = data.train
    order = first_of_permutation(count * size, len(x), *_order(seed, 0)).to(x.device)
    return [(x.index_select(0, index), y.index_select(0, index)) for index in order.split(size)]
