"""What the examples of a split are read from: a map-style data set or an iterable, the same each time it is read."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lthfunc.data.digests import object_digest, tensor_digest
from lthfunc.data.examples import Example, Make, Reader, has_numbers, is_read_once, iterated
from lthfunc.data.images import Observe
from lthfunc.data.spool import spooled
from lthfunc.errors import UserError
from lthfunc.printable import a_or_an
from lthfunc.trees.dataset_checks import describe_data
from lthfunc.trees.types import Dataset

#: Examples that are read twice, to see whether they are always the same, and that count for the digest.
_PROBES = 16


class Source(NamedTuple):
    """The examples of a split. digest: of the contents. first: an example.

    reader, size, seconds: of a map-style data set, the examples and the time to read them. spool: of an iterable,
    what reads it to the end.
    """

    digest: str
    first: Example
    reader: Reader | None = None
    size: int = 0
    seconds: float = 0.0
    spool: Callable[[], Example] | None = None


def source_of(part: str, data: Any, make: Make, folder: Path, stack: ExitStack, observe: Observe | None) -> Source:
    """What to read a split from. make: of an example its tensors.

    Raises UserError for what holds no examples, or other ones each time.
    """
    if not has_examples(data):
        raise UserError(f"{part}: invalid value: {a_or_an(describe_data(data))} (expected a data set of examples)")
    if has_numbers(data):
        return _map_style(part, data, make)

    def spool() -> Example:
        return stack.enter_context(spooled(iterated(data, part, make), folder, part, observe))

    if is_read_once(data):
        found = spool()
        return Source(_digest(found), Example(found.x[:1], found.y[:1], found.parts), spool=lambda: found)
    contents = object_digest(data)
    twice = [_some(iterated(data, part, make)) for _ in range(2)]
    _check_same(part, twice[0], twice[1])
    if not twice[0]:
        raise UserError(f"{part}: no examples")
    return Source(object_digest((contents, *map(_digest, twice[0]))), twice[0][0], spool=spool)


def has_examples(value: Any) -> bool:
    """Whether a value is a data set of examples, of whatever kind."""
    array = hasattr(value, "dtype") and hasattr(value, "shape")
    plain = array or isinstance(value, (str, bytes, Mapping, Dataset))
    return not plain and (has_numbers(value) or hasattr(value, "__iter__"))


def _map_style(part: str, data: Any, make: Make) -> Source:
    size = len(data)
    if not size:
        raise UserError(f"{part}: no examples")
    contents = object_digest(data)  # before it is read, which may change it
    first = Reader(data, part, make).one(0)
    reader = Reader(data, part, make, first)
    places = sorted({round(at * (size - 1) / max(1, _PROBES - 1)) for at in range(_PROBES)})
    begun = time.perf_counter()
    probes = [reader.one(place) for place in places]
    seconds = (time.perf_counter() - begun) / len(places) * size
    _check_same(part, probes, [reader.one(place) for place in places], places)
    return Source(object_digest((contents, size, *map(_digest, probes))), first, reader, size, seconds)


def _some(examples: Iterable[Example]) -> list[Example]:
    return list(islice(examples, _PROBES))


def _check_same(
    part: str, first: Sequence[Example], second: Sequence[Example], places: Sequence[int] | None = None
) -> None:
    """Raise UserError where examples that were read twice differ."""
    for number, (one, other) in enumerate(zip(first, second, strict=False)):
        if not (torch.equal(one.x, other.x) and torch.equal(one.y, other.y)):
            place = number if places is None else places[number]
            hint = "give val= and test= sets without random transforms"
            if part == "train":
                hint = "leave random transforms to augmentations, or stream training examples with lf.data.from_loader"
            raise UserError(
                f"{part}: example {place} differs each time it is read, so it cannot be decoded once; {hint}"
            )


def _digest(example: Example) -> str:
    return f"{tensor_digest(example.x)}/{tensor_digest(example.y)}"
