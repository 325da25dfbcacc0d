"""Training batches of a loader's map-style data set: the same for a seed and a step, wherever training began."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from lthfunc.data.content_checks import check_classes
from lthfunc.data.examples import (
    Example,
    Pair,
    batch_of,
    check_alike,
    check_collated,
    check_repeats,
    good,
    has_numbers,
)
from lthfunc.errors import UserError
from lthfunc.tracebacks import first_line, user_location
from lthfunc.trees.global_rng import preserved_cpu_generators, seed_cpu_generators
from lthfunc.trees.rng import key
from lthfunc.trees.types import Batch


class _Item(NamedTuple):
    """A batch to read: the examples of these numbers."""

    seed: int
    step: int
    numbers: list[int]


class _Reader:
    """Reads batches, here or in a worker process.

    Each example is read with all generators of the CPU seeded by the seed, the step and its place in the batch, so that
    what random transforms draw depends on nothing else. first: whose shapes the others must have. classes: to which
    targets must belong.
    """

    first: Example | None = None
    classes: int | None = None

    def __init__(self, data: Any, collate: Callable[[list[Any]], Any], pair: Pair | None) -> None:
        self._data, self._collate, self._pair = data, collate, pair

    def __getitem__(self, item: _Item) -> Example | str:
        found, what = [], f"train: the batch of step {item.step}"
        try:
            with preserved_cpu_generators():
                for place, number in enumerate(item.numbers):
                    what = f"train: example {number}"
                    seed_cpu_generators(key(item.seed, "loader", item.step, place))
                    found.append(self._data[number])
                what = f"train: the batch of step {item.step}"
                batch = batch_of(self._collate(found), what, self._pair)
            check_collated(batch, len(item.numbers), what)
            check_alike(batch, self.first, what)
            check_classes(batch.y, self.classes, what)
        except UserError as error:
            return str(error)
        except Exception as error:
            return f"{what} cannot be read{user_location(error)} ({type(error).__name__}: {first_line(error)})"
        return batch


class MapStream:
    """The examples of a loader's map-style data set, in the order of its sampler; see `Stream`.

    keep: the numbers of the examples to train on; None for all. examples: of an epoch, for a sampler without a length;
    of others the first ones. Raises UserError for a sampler whose order cannot be repeated, or that cannot be kept to
    some examples. part: what messages call it.
    """

    def __init__(
        self, loader: DataLoader[Any], pair: Pair | None, keep: Tensor | None = None, examples: int | None = None,
        part: str = "train",
    ) -> None:  # fmt: skip
        self._loader, self._keep = loader, keep
        self._reader = _Reader(loader.dataset, loader.collate_fn, pair)
        sampler = _sampler_of(loader)
        self._name = f"{part}: its {type(sampler).__name__}"
        #: How much of a sampler to read, which may have no end: so many examples, and so many of its items.
        self._most, self._items = examples, None if examples is not None else _length(sampler, self._name)
        if getattr(sampler, "num_replicas", 1) > 1:
            raise UserError(f"{self._name} gives each rank other examples; leave it out, ranks share every batch here")
        first = self.order(0, 0)
        if first != self.order(0, 0):
            raise UserError(
                f"{self._name} draws another order each time, so no run could be resumed; let it draw with an "
                "attribute `generator`, or with a global generator"
            )
        self.examples = len(first)

    def limit(self, classes: int | None) -> None:
        """From now on, refuse targets that are none of the classes."""
        self._reader.classes = classes

    def sample(self, count: int) -> Example:
        """The first examples of seed 0, which all others must be like. Raises UserError where two readings differ."""
        item = _Item(0, 0, self.order(0, 0)[:count])
        first, again = (good(self._reader[item]) for _ in range(2))
        check_repeats([first], [again])
        self._reader.first = first
        return first

    def batches(self, batch_size: int, seeds: Sequence[int], start: int) -> Generator[list[Batch], None, None]:
        """The batches from step `start` on, one for each seed."""
        loader = self._loader
        # A worker of a run has no processes of its own; the examples are the same.
        workers = 0 if multiprocessing.current_process().daemon else loader.num_workers
        of_workers = ("prefetch_factor", "timeout", "multiprocessing_context") if workers else ()
        more: dict[str, Any] = {name: getattr(loader, name) for name in of_workers}
        reading: Any = iter(
            DataLoader(
                self._reader,  # type: ignore[arg-type]  # it has what a map-style data set has
                batch_size=None,
                sampler=_Items(self, batch_size, seeds, start),
                num_workers=workers,
                collate_fn=_unchanged,
                worker_init_fn=loader.worker_init_fn,
                generator=torch.Generator(),  # its workers' seeds are not drawn from the global one
                **more,
            )
        )
        try:
            while True:
                yield [(found.x, found.y) for found in (good(next(reading)) for _ in seeds)]
        finally:
            del reading  # and its processes

    def items(self, batch_size: int, seeds: Sequence[int], start: int) -> Iterator[_Item]:
        """What to read for the steps from `start` on."""
        per_epoch, step = self.examples // batch_size, start
        orders: dict[int, list[int]] = {}
        while True:
            epoch, place = divmod(step, per_epoch)
            if not orders or place == 0:
                orders = {seed: self.order(seed, epoch) for seed in seeds}
            for seed in seeds:
                numbers = orders[seed][place * batch_size : (place + 1) * batch_size]
                if len(numbers) < batch_size:
                    raise UserError(
                        f"{self._name} chooses {len(orders[seed])} examples in epoch {epoch}, not {self.examples} as "
                        "in the first"
                    )
                yield _Item(seed, step, numbers)
            step += 1

    def order(self, seed: int, epoch: int) -> list[int]:
        """The numbers of an epoch's examples, drawn by the loader's own sampler with its generators seeded."""
        sampler, own = copy.copy(_sampler_of(self._loader)), key(seed, "loader", epoch)
        if self._keep is not None:
            return _kept(sampler, self._keep, own)[: self._most]
        if isinstance(getattr(sampler, "generator", None), torch.Generator):
            sampler.generator = torch.Generator().manual_seed(own)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        with preserved_cpu_generators():
            seed_cpu_generators(own)
            return list(islice(_numbers(islice(sampler, self._items)), self._most))


class _Items:
    """The items of a stream as a sampler; orders are drawn in the parent process."""

    def __init__(self, stream: MapStream, *about: Any) -> None:
        self._stream, self._about = stream, about

    def __iter__(self) -> Iterator[_Item]:
        return self._stream.items(*self._about)


def is_map_style(value: Any) -> bool:
    """Whether a value is a DataLoader that reads examples by their numbers and makes batches of them."""
    return isinstance(value, DataLoader) and has_numbers(value.dataset) and value.batch_sampler is not None


def _sampler_of(loader: DataLoader[Any]) -> Any:
    """What chooses a loader's examples, one by one or in batches."""
    return loader.sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler


def _length(sampler: Any, name: str) -> int:
    """How many items a sampler has. Raises UserError where that is unknown."""
    try:
        return len(sampler)
    except TypeError as error:
        raise UserError(f"{name} has no length; examples=N says how many examples an epoch has") from error


def _numbers(items: Iterable[Any]) -> Iterator[int]:
    """The numbers of examples that a sampler gives one by one, or in batches."""
    for item in items:
        yield from item if isinstance(item, (list, tuple)) else [item]


def _kept(sampler: Any, keep: Tensor, seed: int) -> list[int]:
    """The order in which a sampler would have given some examples alone."""
    if type(sampler) is RandomSampler and not sampler.replacement:  # a subclass may choose otherwise
        order = torch.randperm(len(keep), generator=torch.Generator().manual_seed(seed))
        keep = keep[order[: sampler.num_samples]]
    elif type(sampler) is not SequentialSampler:
        raise UserError(
            f"train: its {type(sampler).__name__} chooses among all examples, so none can be held out of them; give "
            "val= and test= sets of their own"
        )
    found: list[int] = keep.tolist()
    return found


def _unchanged(value: Any) -> Any:
    return value
