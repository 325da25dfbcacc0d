"""Batches of a data set that lies on the device: gathered by a permutation that is a function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lthfunc.errors import invalid
from lthfunc.trees.rng import generator, permutation
from lthfunc.trees.types import Batch, Split

#: Random changes of a batch of inputs, drawn from the generator: (n, ...) -> (n, ...).
Augment = Callable[[Tensor, torch.Generator], Tensor]


def steps_per_epoch(size: int, batch_size: int) -> int:
    """Full batches in `size` examples; the rest of an epoch is left out (another permutation follows).

    Raises UserError where not even one batch fits.
    """
    if not 1 <= batch_size <= size:
        raise invalid("--batch-size", batch_size, f"a whole number from 1 to {size}, the training examples")
    return size // batch_size


def batches(
    split: Split, batch_size: int, seed: int, start: int, stop: int, augment: Augment | None = None
) -> Iterator[Batch]:
    """The batches of steps start … stop-1; step s always sees the same batch, wherever one begins."""
    per_epoch = steps_per_epoch(len(split.x), batch_size)
    epoch, order = -1, torch.empty(0)
    for step in range(start, stop):
        if step // per_epoch != epoch:
            epoch = step // per_epoch
            order = permutation(len(split.x), seed, "order", epoch).to(split.x.device)
        position = step % per_epoch * batch_size
        index = order[position : position + batch_size]
        inputs = split.x[index]
        if augment is not None:
            inputs = augment(inputs, generator(seed, "augment", step))
        yield inputs, split.y[index]
