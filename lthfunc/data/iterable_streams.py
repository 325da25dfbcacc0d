"""Training batches of an iterable, which is read from its beginning in each epoch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from lthfunc.data.content_checks import check_classes
from lthfunc.data.examples import Example, Pair, batch_of, check_alike, check_repeats, is_read_once
from lthfunc.data.fresh_loaders import fresh
from lthfunc.errors import UserError
from lthfunc.printable import a_or_an
from lthfunc.tracebacks import first_line, user_location
from lthfunc.trees.global_rng import preserved_cpu_generators, seed_cpu_generators
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch


class IterableStream:
    """The examples of an iterable of batches; see `Stream`.

    Wherever training begins, the batches of its epoch that come before are read and passed over. source: the iterable,
    or a function that makes one. examples: of an epoch. Raises UserError for what can be read only once, and where two
    readings differ.
    """

    def __init__(self, source: Any, pair: Pair | None, examples: int | None) -> None:
        self._source, self._pair = source, pair
        self._first: Example | None = None
        self._classes: int | None = None
        if not callable(source) and not isinstance(source, Iterable):
            raise UserError(
                f"train: invalid value: {a_or_an(type(source).__name__)} (expected a DataLoader or an iterable of "
                "batches)"
            )
        if not callable(source) and is_read_once(source):
            raise UserError(
                f"train: a {type(source).__name__} can be read only once, but every epoch, round, seed and resumed run "
                "begins anew; pass a function that makes one"
            )
        one, other = (list(islice(self._epoch(0, 0), 2)) for _ in range(2))
        if not one:
            raise UserError("train: no batches")
        check_repeats(one, other)
        self.examples = _count(source, len(one[0].x), self._epoch(0, 0)) if examples is None else examples

    def limit(self, classes: int | None) -> None:
        """From now on, refuse targets that are none of the classes."""
        self._classes = classes

    def sample(self, count: int) -> Example:
        """The first examples of seed 0, at least as many, which all others must be like."""
        found, seen = list[Example](), 0
        for number, batch in enumerate(self._epoch(0, 0)):
            check_alike(batch, found[0] if found else None, f"train: batch {number} of epoch 0")
            found.append(batch)
            seen += len(batch.x)
            if seen >= count:
                break
        x, y = (torch.cat([getattr(batch, part) for batch in found]) for part in "xy")
        self._first = Example(x, y, found[0].parts)
        return self._first

    def batches(self, batch_size: int, seeds: Sequence[int], start: int) -> Generator[list[Batch], None, None]:
        """The batches from step `start` on, one for each seed."""
        each = [self._batches(batch_size, seed, start) for seed in seeds]
        try:
            while True:
                yield [next(found) for found in each]
        finally:
            for found in each:
                found.close()

    def _batches(self, batch_size: int, seed: int, start: int) -> Generator[Batch, None, None]:
        per_epoch = self.examples // batch_size
        epoch, place = divmod(start, per_epoch)
        while True:
            over, held = place * batch_size, list[Example]()  # how many to pass over; what no batch has taken yet
            for found in self._epoch(seed, epoch):
                kept = Example(found.x[over:], found.y[over:])
                over = max(0, over - len(found.x))
                held.append(kept)
                while place < per_epoch and sum(len(each.x) for each in held) >= batch_size:
                    x, y = (torch.cat([getattr(each, part) for each in held]) for part in "xy")
                    held = [Example(x[batch_size:], y[batch_size:])]
                    place += 1
                    yield x[:batch_size], y[:batch_size]
                if place == per_epoch:
                    break
            if place < per_epoch:
                raise UserError(
                    f"train: epoch {epoch} ended after {place} batches of {batch_size}, not {per_epoch}; examples=N "
                    "says how many examples an epoch has"
                )
            epoch, place = epoch + 1, 0

    def _epoch(self, seed: int, epoch: int) -> Iterator[Example]:
        """The batches of an epoch, each read with all generators of the CPU seeded."""
        number = 0
        try:
            with preserved_cpu_generators():
                seed_cpu_generators(key(seed, "loader", epoch))
                made = self._source() if callable(self._source) else self._source
                source = iter(fresh(made, "train", key(seed, "loader", epoch)))
            while True:
                with preserved_cpu_generators():
                    seed_cpu_generators(key(seed, "loader", epoch, number))
                    try:
                        value = next(source)
                    except StopIteration:
                        return
                where = f"train: batch {number} of epoch {epoch}"
                found = batch_of(value, where, self._pair)
                check_alike(found, self._first, where)
                check_classes(found.y, self._classes, where)
                yield found
                number += 1
        except UserError:
            raise
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"train: cannot be read{user_location(error)} ({what})") from error


def _count(source: Any, size: int, batches: Iterable[Example]) -> int:
    """Examples of an epoch, by the batches of a list, the length of a loader, or that of an iterable and this size."""
    if isinstance(source, Sequence):
        return sum(len(batch.x) for batch in batches)
    with suppress(TypeError):
        loader: Any = source if isinstance(source, DataLoader) else None
        if loader is None or loader.batch_size is None:
            return len(source) * size
        return len(loader) * loader.batch_size if loader.drop_last else len(loader.dataset)
    raise UserError("train: has no length; examples=N says how many examples an epoch has")
