"""Single examples of anybody's data set as tensors, read one by one or by worker processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lthfunc.data.as_tensors import inputs_of, targets_of
from lthfunc.data.fresh_loaders import fresh
from lthfunc.data.pixels import channels_last, levels_of
from lthfunc.errors import UserError
from lthfunc.printable import dtype_and_shape
from lthfunc.tracebacks import call_user_function, first_line, function_name, user_location
from lthfunc.trees.dataset_checks import describe_data
from lthfunc.trees.global_rng import preserved_cpu_generators
from lthfunc.trees.multi_input import InputSpec

#: What makes (inputs, target) of an example that is something else.
Pair = Callable[[Any], Any]
#: (an example or a batch, what messages call it) -> its tensors. Raises UserError.
Make = Callable[[Any, str], "Example"]
#: Examples that a worker process hands over at a time.
_CHUNK = 64


class Example(NamedTuple):
    """Inputs and targets of some examples, each with a first dimension of its own. parts: of several inputs."""

    x: Tensor
    y: Tensor
    parts: tuple[InputSpec, ...] = ()

    @property
    def kinds(self) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
        """Shape of an example, and dtype, of inputs and of targets."""
        return (tuple(self.x.shape[1:]), self.x.dtype), (tuple(self.y.shape[1:]), self.y.dtype)


def example_of(value: Any, where: str, pair: Pair | None = None) -> Example:
    """One example, as n = 1. where: what messages call it. pair: for examples that are no pairs.

    Images of Pillow become uint8 (channels, height, width), as NumPy's of (height, width, channels) do; floats become
    float32, targets int64 or float32. Raises UserError.
    """
    x, y = pair_of(value, where, pair)
    inputs, parts = inputs_of(_with_batch(_image(x, where)), where)
    targets = targets_of(_with_batch(y), f"{where}: target", inputs)
    return Example(inputs[:, None] if inputs.ndim == 1 else inputs, targets, parts)


def batch_of(value: Any, where: str, pair: Pair | None = None) -> Example:
    """A batch of a loader. where: what messages call it. pair: for batches that are no pairs. Raises UserError."""
    x, y = pair_of(value, where, pair)
    inputs, parts = inputs_of(x, where)
    found = Example(inputs[:, None] if inputs.ndim == 1 else inputs, targets_of(y, f"{where}: targets", inputs), parts)
    if len(found.x) != len(found.y):
        raise UserError(f"{where}: {len(found.x)} inputs but {len(found.y)} targets")
    return found


def collated_of(value: Any, where: str, collate: Callable[[list[Any]], Any], pair: Pair | None = None) -> Example:
    """One example as a loader's collate_fn makes a batch of it. Raises UserError."""
    found = batch_of(collate([value]), where, pair)
    check_collated(found, 1, where)
    return found


def check_collated(found: Example, count: int, where: str) -> None:
    """Raise UserError where a collate_fn left out examples, or made more."""
    if len(found.x) != count:
        wanted = "one" if count == 1 else str(count)
        raise UserError(f"{where}: its collate_fn makes {len(found.x)} examples of {wanted}")


def pair_of(value: Any, where: str, pair: Pair | None) -> tuple[Any, Any]:
    """(inputs, target) of an example. Raises UserError for anything else."""
    if pair is not None:
        given = value
        value = call_user_function(f"{where}: pair", function_name(pair), lambda: pair(given))
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return value[0], value[1]
    what = f"a {describe_data(value)}"
    if isinstance(value, Mapping):
        what = f"a dict of {', '.join(map(str, value))}"
    raise UserError(
        f"{where}: is {what}, not a pair (inputs, target); pair=lambda example: (…, …) makes one of each example"
    )


def _image(value: Any, where: str) -> Any:
    """An image as uint8 levels, channels first; anything else as it is."""
    if hasattr(value, "convert") and hasattr(value, "getbands"):
        try:
            pixels, peak = levels_of(value, None, 255)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if peak is not None:  # black, were it scaled by more bits than are in use
            raise UserError(f"{where}: has grey pixels of 16 bits, of which it is not known how many are in use; "
                            "convert them to 8 bits or to floats")  # fmt: skip
        return torch.from_numpy(np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)))
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return value.transpose(2, 0, 1) if channels_last(value.shape[0], value.shape[2]) else value
    return value


def _with_batch(value: Any) -> Any:
    """A value, or several in a tuple or dictionary, with one more dimension in front."""
    if isinstance(value, Mapping):
        return {key: _with_batch(each) for key, each in value.items()}
    if isinstance(value, (tuple, list)) and value and all(isinstance(each, (Tensor, np.ndarray)) for each in value):
        return tuple(map(_with_batch, value))
    if isinstance(value, (Tensor, np.ndarray)):
        return value[None]
    return [value] if isinstance(value, (int, float, list, tuple)) else np.asarray(value)[None]


def has_numbers(value: Any) -> bool:
    """Whether a value is a map-style data set or a sequence, whose examples have numbers."""
    sized = hasattr(value, "__getitem__") and hasattr(value, "__len__")
    return sized and not isinstance(value, IterableDataset)  # whose class has both


def is_read_once(value: Iterable[Any]) -> bool:
    """Whether an iterable is an iterator, such as a generator."""
    if isinstance(value, DataLoader):  # which would start its processes
        return False
    with preserved_cpu_generators():
        return iter(value) is value


class Reader:
    """Reads examples of a map-style data set by their numbers, in this or another process.

    What goes wrong comes back as a line of text, which names the example. make: (an example, its name) -> its tensors.
    first: whose shapes the others must have.
    """

    def __init__(self, data: Any, split: str, make: Make, first: Example | None = None) -> None:
        self._data, self._split, self._make, self._first = data, split, make, first

    def __getitem__(self, number: int) -> Example | str:
        where = f"{self._split}: example {number}"
        try:
            found = self._make(self._data[number], where)
            check_alike(found, self._first, where)
        except UserError as error:
            return str(error)
        except Exception as error:
            return f"{where} cannot be read{user_location(error)} ({type(error).__name__}: {first_line(error)})"
        return found

    def __len__(self) -> int:
        return len(self._data)

    def one(self, number: int) -> Example:
        """The example of a number. Raises UserError."""
        return good(self[number])


def good(found: Example | str) -> Example:
    """What was read. Raises UserError where it is a message."""
    if isinstance(found, str):
        raise UserError(found)
    return found


def check_alike(found: Example, first: Example | None, where: str) -> None:
    """Raise UserError for examples of other shapes than the first ones, and for numbers that are not finite."""
    if first is not None and (found.kinds != first.kinds or found.parts != first.parts):
        what, mine, other = next(
            (each for each in (("inputs", found.x[0], first.x[0]), ("a target", found.y[0], first.y[0]))
             if (each[1].shape, each[1].dtype) != (each[2].shape, each[2].dtype)),
            ("inputs", found.x[0], first.x[0]),
        )  # fmt: skip
        hint = "; a transform can resize them, v2.Resize((32, 32))" if mine.ndim == 3 else ""
        raise UserError(
            f"{where} has {what} of {dtype_and_shape(mine)}, but the first example of {dtype_and_shape(other)}{hint}"
        )
    for what, values in (("input", found.x), ("target", found.y)):
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise UserError(f"{where} holds {what}s that are not finite")


def check_repeats(one: Sequence[Example], other: Sequence[Example]) -> None:
    """Raise UserError where training batches that were read twice, after the same seeds, differ."""
    same = (torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(one, other, strict=False))
    if len(one) != len(other) or not all(same):
        raise UserError(
            "train: gives other batches each time it is read, so no run could be resumed; let it draw with the "
            "global generators, which are seeded, or decode it once with lf.data.from_dataset"
        )


def read_all(reader: Reader, numbers: Sequence[int], workers: int) -> Iterator[Example]:
    """The examples of these numbers, some at a time and in this order. workers: processes; 0 reads here.

    Raises UserError for one that cannot be read.
    """
    loader: DataLoader[Example | str] = DataLoader(
        reader,  # type: ignore[arg-type]  # it has what a map-style data set has
        batch_size=_CHUNK,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_together,
        generator=torch.Generator(),  # its workers' seeds are not drawn from the global one
        multiprocessing_context="fork" if workers else None,
    )
    for found in loader:
        yield good(found)


def iterated(data: Iterable[Any], split: str, make: Make) -> Iterator[Example]:
    """The examples of an iterable, or batches of them, in its order. Raises UserError."""
    first: Example | None = None
    for number, value in enumerate(_guarded(data, split)):
        where = f"{split}: example {number}"
        found = make(value, where)
        first = first or found
        check_alike(found, first, where)
        yield found


def _guarded(data: Iterable[Any], split: str) -> Iterator[Any]:
    try:
        yield from fresh(data, split)
    except (UserError, GeneratorExit):
        raise
    except Exception as error:
        raise UserError(
            f"{split}: cannot be read{user_location(error)} ({type(error).__name__}: {first_line(error)})"
        ) from error


def _together(found: Sequence[Example | str]) -> Example | str:
    wrong = next((each for each in found if isinstance(each, str)), None)
    if wrong is not None:
        return wrong
    examples = [each for each in found if not isinstance(each, str)]
    return Example(
        torch.cat([each.x for each in examples]), torch.cat([each.y for each in examples]), examples[0].parts
    )
