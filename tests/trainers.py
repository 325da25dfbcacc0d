"""What the tests of trainers share: batches in the order of `lf.train`, and a training that is cut off."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from loops import BATCH, DATA, MODEL, SEED, STEPS, trained
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, IterableDataset, Sampler
from torch.utils.hooks import RemovableHandle

import lthfunc as lf
from lthfunc.training.batches import BatchOrder
from lthfunc.trees.types import TrainState

START, ADAM, PRUNED = lf.init(MODEL, SEED), lf.adam(0.01), lf.prune(fraction=0.3)
#: Of all rounds, and of each.
STEPS_A_EPOCH, EPOCHS, ROUND = 4, 9, 3
#: Within the second round, after its first epoch.
KILLED_AT = 18


class Order(Sampler[list[int]]):
    """The batches of `lf.train` in an epoch of a trainer, whose rounds see the same ones."""

    def __init__(self) -> None:
        self._epoch, self._order = 0, BatchOrder(len(DATA.train.x), BATCH, SEED)
        self.sampler = self  # which Lightning tells the epoch

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch % ROUND

    def __len__(self) -> int:
        return STEPS_A_EPOCH

    def __iter__(self) -> Iterator[list[int]]:
        start = self._epoch * STEPS_A_EPOCH
        yield from self._order.rows(start, start + STEPS_A_EPOCH).tolist()


class Loader(DataLoader[dict[str, Tensor]]):
    """Of such batches, for trainers that tell it or its sampler the epoch."""

    def __init__(self) -> None:
        examples: Any = [{"x": x, "labels": y} for x, y in zip(DATA.train.x, DATA.train.y, strict=True)]
        super().__init__(examples, batch_sampler=Order())

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]


class Endless(IterableDataset[dict[str, Tensor]]):
    """Batches without a number of them."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield {"x": DATA.train.x[:BATCH], "labels": DATA.train.y[:BATCH]}


def functional(optimizer: lf.Optimizer = ADAM) -> TrainState:
    """Two rounds of the functional path, and the training of the ticket."""
    find = lf.compose(trained(optimizer), PRUNED, lf.rewind(to=START))
    return trained(optimizer)(lf.iterate(find, rounds=2)(START))


def stripped(ticket: lf.Ticket, prefix: str) -> lf.Ticket:
    """A ticket with the names within a part of a module."""
    return lf.Ticket(*({name.removeprefix(prefix): leaf for name, leaf in tree.items()} for tree in ticket))


def at_step(act: Callable[[], None], step: int = KILLED_AT) -> RemovableHandle:
    """Act after a step of whatever optimiser steps, counted from now on."""
    assert STEPS == ROUND * STEPS_A_EPOCH
    done = itertools.count(1)
    return register_optimizer_step_post_hook(lambda *_: act() if next(done) == step else None)


def killed(train: Callable[[], Any]) -> None:
    """Begin a training that ends within its second round, and leaves what it has written until then.

    By an exception: a fork of a process in which autograd has had threads cannot train, and another process would
    import the trainer's package for seconds (test_trainers_killed.py does that). What the trainer does with an
    exception must change no checkpoint.
    """

    def die() -> None:
        raise KilledError

    hook = at_step(die)
    try:
        with pytest.raises(KilledError):
            train()
    finally:
        hook.remove()


class KilledError(Exception):
    """Where a signal might have come."""
