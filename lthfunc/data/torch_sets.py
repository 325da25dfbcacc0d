"""Anybody's data sets, decoded once: `torch.utils.data.Dataset`, sequences and iterables of examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lthfunc.arguments import public
from lthfunc.data.data_warnings import with_warnings
from lthfunc.data.decoded import DecodeSettings, decoded_once
from lthfunc.data.digests import object_digest
from lthfunc.data.examples import example_of
from lthfunc.data.images import Observe
from lthfunc.data.sources import source_of
from lthfunc.errors import UserError, invalid
from lthfunc.hardware import cache_home
from lthfunc.printable import a_or_an
from lthfunc.trees.dataset_checks import describe_data
from lthfunc.trees.types import Dataset, Scale


@public
def from_dataset(
    name: str,
    train: Any,
    test: Any = 0.1,
    *,
    val: Any = 0.1,
    classes: int | None = None,
    labels: Sequence[str] = (),
    scale: Scale | None = None,
    pair: Callable[[Any], Any] | None = None,
    cache: bool | str = True,
    workers: int | None = None,
    observe: Observe | None = None,
) -> Dataset:
    """Make a data set of anybody's, such as a `torch.utils.data.Dataset`, decoded once to a file.

    name: of the data set. train: a map-style data set, a sequence or an iterable of examples. test, val: the same; or
    the share of the training examples to hold out (their number, from 1 on), drawn by a fixed permutation. An example
    is a pair (inputs, target): inputs are a tensor, an array, an image of Pillow, a number, or several of them in a
    tuple or by name; a target is a class, a class for each token or pixel, or a float or several. pair: makes such a
    pair of an example that is none. Transforms must not draw random numbers: an augmentation does that in every step.

    classes: their number, where the targets or the set's `classes` don't show it; labels: their names. scale: of stored
    inputs; by default that of the training images, if they are uint8 (channels, height, width). cache: whether to keep
    the file, below ``$LTHFUNC_CACHE/data``, under a name that changes with the set's contents and settings; a text
    makes another name, for files that have changed under their old names. An iterator is read each time. workers:
    processes that read; by default as many as pay off. observe: called with how many of how many are decoded.

    Returns the data set, in memory up to 1 GiB, else mapped from the file. Raises UserError where examples cannot be
    read, are not alike, or differ each time they are read.

    >>> numbers = torch.utils.data.TensorDataset(torch.randn(40, 4), torch.arange(40) % 2)
    >>> data = lf.data.from_dataset("mine", numbers)
    >>> len(data.train.x), len(data.val.x), len(data.test.x)
    (32, 4, 4)
    """
    given = {"train": train, "val": val, "test": test}
    held = {part: held_out(part, value) for part, value in given.items() if isinstance(value, (int, float))}
    if "train" in held:
        raise UserError(f"train: invalid value: {a_or_an(describe_data(train))} (expected a data set of examples)")
    with ExitStack() as stack:
        make = partial(example_of, pair=pair)
        sources = {
            part: source_of(part, value, make, cache_folder(), stack, observe)
            for part, value in given.items()
            if part not in held
        }
        settings = DecodeSettings(name, held, classes, tuple(labels) or labels_of(train), scale, workers, observe)
        data = decoded_once(cache_folder(), sources, settings, object_digest((pair, cache)), keep=bool(cache))
    return with_warnings(data)


def cache_folder() -> Path:
    """The folder of decoded data sets."""
    folder = cache_home() / "data"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def held_out(part: str, value: float) -> float:
    """A share or a number of examples to hold out. Raises UserError."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not whole and not (isinstance(value, float) and 0 < value < 1):
        raise invalid(part, value, "a data set, a share between 0 and 1, or a number of examples")
    return value


def labels_of(train: Any) -> tuple[str, ...]:
    """The names of the classes, as torchvision's data sets have them."""
    found = getattr(train, "classes", None)
    listed = isinstance(found, (list, tuple)) and found and all(isinstance(each, str) for each in found)
    return tuple(found or ()) if listed else ()
