"""`DataLoader`s and iterables of batches as data sets whose training examples are streamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset, default_collate

from lthfunc.arguments import public
from lthfunc.data.data_warnings import with_warnings
from lthfunc.data.decoded import DecodeSettings, decoded_once
from lthfunc.data.digests import object_digest
from lthfunc.data.examples import Example, Make, Pair, batch_of, collated_of, has_numbers
from lthfunc.data.images import Observe
from lthfunc.data.iterable_streams import IterableStream
from lthfunc.data.map_streams import MapStream, is_map_style
from lthfunc.data.sources import Source, source_of
from lthfunc.data.tensors import split_indices
from lthfunc.data.torch_sets import cache_folder, held_out, labels_of
from lthfunc.errors import UserError, invalid
from lthfunc.trees.types import Dataset, Scale

#: Training examples that are read at once, to know their shapes and kinds.
_SAMPLE = 256


@public
def from_loader(
    name: str,
    train: Any,
    test: Any = 0.1,
    *,
    val: Any = 0.1,
    classes: int | None = None,
    labels: Sequence[str] = (),
    scale: Scale | None = None,
    pair: Callable[[Any], Any] | None = None,
    examples: int | None = None,
    observe: Observe | None = None,
) -> Dataset:
    """Make a data set whose training examples are streamed from a `DataLoader` or another iterable of batches.

    It is for what cannot be decoded once (`from_dataset`): transforms of your own that draw random numbers, or more
    than a disk holds. name: of the data set. train: a loader, an iterable of batches (inputs, targets), or a function
    that makes one. test, val: loaders, map-style data sets or lists of examples, or other iterables, of batches with an
    end, decoded once; or the share (or number) of the examples of the loader's map-style data set to hold out.
    classes: their number; by default that of the data set's `classes`. labels: their names. scale: of stored inputs,
    such as uint8 images. pair: makes (inputs, targets) of batches that are something else. examples: of an epoch, for a
    sampler or an iterable without a length or an end. observe: called with how many of how many are decoded.

    The order of examples and all draws are functions of the seed, the epoch and the step. A map-style data set is read
    in the order of the loader's sampler, with its collate_fn and by its worker processes; each example is read with the
    global generators seeded. Other iterables are read from their beginning in each epoch, and once more where a run is
    resumed. Batches have the trainer's size, whatever the loader's.

    Returns the data set; its `train` holds the first examples alone. Raises UserError for an order that cannot be
    repeated, such as a generator's, and where examples cannot be read.

    >>> numbers = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.arange(40) % 2)
    >>> data = lf.data.from_loader("mine", torch.utils.data.DataLoader(numbers, 8, shuffle=True), classes=2)
    >>> data.examples, len(data.val.x)
    (32, 4)
    """
    given = {"val": val, "test": test}
    held = {part: held_out(part, value) for part, value in given.items() if isinstance(value, (int, float))}
    kept, chosen = _split(name, train, held)
    if examples is not None and examples < 1:
        raise invalid("examples", examples, "a whole number above 0")
    stream = MapStream(train, pair, kept, examples) if is_map_style(train) else IterableStream(train, pair, examples)
    first = stream.sample(min(_SAMPLE, stream.examples))
    whole = getattr(train, "dataset", None)
    names = tuple(labels) or labels_of(whole)
    _check_known(first, classes or len(names) or None, scale)
    stream.limit(None if first.y.is_floating_point() else classes or len(names))
    collate = train.collate_fn if is_map_style(train) else default_collate
    with ExitStack() as stack:
        sources = {"train": Source(object_digest(first), first, spool=lambda: first)}
        for part, value in given.items():
            data = Subset(whole, chosen[part].tolist()) if part in chosen else value  # type: ignore[arg-type]
            sources[part] = source_of(part, *_evaluated(part, data, collate, pair), cache_folder(), stack, observe)
        settings = DecodeSettings(name, {}, classes, names, scale, None, observe)
        data = decoded_once(cache_folder(), sources, settings, object_digest((pair, collate)))
    return with_warnings(data._replace(stream=stream))


def _split(name: str, train: Any, held: Mapping[str, float]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """(the numbers of the examples to train on, or None for all; those of each split that is held out of them)."""
    if not held:
        return None, {}
    if not is_map_style(train):
        part, value = next(iter(held.items()))
        raise UserError(f"{part}: {value} of an iterable cannot be held out; give {part}= a set of its own")
    parts = [part for part in ("test", "val") if part in held]
    *chosen, rest = split_indices(len(train.dataset), [held[part] for part in parts], name)
    return rest.sort().values, {part: each.sort().values for part, each in zip(parts, chosen, strict=True)}


def _evaluated(part: str, value: Any, collate: Callable[[list[Any]], Any], pair: Pair | None) -> tuple[Any, Make]:
    """(what to decode, what makes tensors of what it holds) of a validation or test set.

    A loader's map-style data set is read without its batches, and without its order.
    """
    if is_map_style(value):
        chosen = sorted(MapStream(value, pair, part=part).order(0, 0))
        return Subset(value.dataset, chosen), partial(collated_of, collate=value.collate_fn, pair=pair)
    if has_numbers(value):
        return value, partial(collated_of, collate=collate, pair=pair)
    return value, partial(batch_of, pair=pair)


def _check_known(first: Example, classes: int | None, scale: Scale | None) -> None:
    """Raise UserError for what a part of the examples cannot show."""
    if classes is None and not first.y.is_floating_point():
        raise UserError(
            "classes: a stream does not show how many there are; pass classes=N to lf.data.from_loader, or give its "
            "data set their names, an attribute `classes`"
        )
    if scale is None and first.x.dtype is torch.uint8 and first.x.ndim == 4:
        raise UserError(
            "scale: a stream does not show the mean of its images; pass scale=lf.Scale(255, mean, std) to "
            "lf.data.from_loader"
        )
