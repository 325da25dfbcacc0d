"""An optimiser and its parts as instructions over all survivors at once, and their state as the machine keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.instructions import BY_ROWS, WHOLE
from lthfunc.training.accumulation import AccumulateNumbers
from lthfunc.training.averaging import AverageState, EMANumbers
from lthfunc.training.chain import numbers_of
from lthfunc.training.clipping import ClipNormNumbers, ClipValueNumbers
from lthfunc.training.optimizers import (
    AdamNumbers,
    AdamState,
    Optimizer,
    SGDNumbers,
    SGDState,
    chosen,
    corrections_of,
)

#: Of an optimiser or a part that the machine has instructions for.
Numbers = AccumulateNumbers | ClipValueNumbers | ClipNormNumbers | SGDNumbers | AdamNumbers | EMANumbers
#: Numbers that a thread should have to update, at least.
_SHARE = 8_192


def machine_numbers(optimizer: Optimizer) -> tuple[Numbers, ...] | None:
    """What the machine needs to update by this optimiser; None where a part of it is Python's."""
    found = numbers_of(optimizer)
    return tuple(found) if all(isinstance(each, Numbers) for each in found) else None


def pythons_parts(optimizer: Optimizer) -> list[str]:
    """The names of those parts that the machine has no instructions for, "" for an optimiser."""
    return [
        getattr(part, "name", "")
        for part in optimizer.parts or (optimizer,) if not isinstance(part.numbers, Numbers)
    ]  # fmt: skip


class Update(NamedTuple):
    """Where a program's update is. each_part: instructions at its beginning that run for every part of a batch.

    kept: rows of what it keeps. averages: where averages of the running statistics begin among the constants; -1
    without any.
    """

    each_part: int = 0
    kept: int = 0
    averages: int = -1


def add_update(b: Builder, numbers: Sequence[Numbers], statistics: int) -> Update:
    """Add the instructions of an optimiser and its parts. statistics: the first so many constants are running ones."""
    found = Update()
    if any(isinstance(part, AccumulateNumbers) for part in numbers):
        _over_all(b, "accumulate", sums=0)
        found = Update(each_part=1, kept=1)
    for part in numbers:
        if isinstance(part, ClipValueNumbers):
            _over_all(b, "clip_values", limit=b.numbers([part.limit]))
        elif isinstance(part, ClipNormNumbers):
            shares = _shares(b.trained)
            sums = b.numbers([0.0] * shares)
            _over_all(b, "square_sums", sums=sums)
            _over_all(b, "clip_norm", sums=sums, shares=shares, limit=b.numbers([part.max_norm]))
        elif isinstance(part, EMANumbers):
            averages = _add_average(b, part, found.kept, statistics)
            found = found._replace(kept=found.kept + 1, averages=averages)
        elif isinstance(part, SGDNumbers | AdamNumbers):
            found = found._replace(kept=found.kept + _add_optimizer(b, part, found.kept))
    return found


def _add_optimizer(b: Builder, numbers: SGDNumbers | AdamNumbers, row: int) -> int:
    """One instruction, or one for each stretch of parameters whose weights decay or don't. Returns how many rows."""
    decays, still = b.numbers([numbers.weight_decay]), b.numbers([0.0])
    if isinstance(numbers, AdamNumbers):
        first = b.numbers([*numbers.betas, numbers.eps])
        name, rows, columns = "adam", 2, {"mean": row, "variance": row + 1, "decoupled": int(numbers.decoupled)}
        columns |= {"beta1": first, "beta2": first + 1, "epsilon": first + 2}
    else:
        name, rows, momentum = "sgd", int(numbers.momentum != 0), b.numbers([numbers.momentum])
        columns = {"velocity": row if rows else -1, "nesterov": int(numbers.nesterov), "momentum": momentum}
    for decaying, (begin, end) in _stretches(b, numbers):
        _add(b, name, begin, end, weight_decay=decays if decaying else still, **columns)
    return rows


def _stretches(b: Builder, numbers: SGDNumbers | AdamNumbers) -> Iterator[tuple[bool, tuple[int, int]]]:
    """(whether weights decay, from which number to which), for parameters side by side that are alike in that."""

    def decays(name: str) -> bool:
        shape = b.weights[name].shape if name in b.weights else (b.leaves[name].size,)
        return chosen(numbers.decays, name, torch.empty(shape, device="meta"))

    if numbers.decays is None or not numbers.weight_decay:
        yield True, (0, b.trained)
        return
    for decaying, group in groupby((name for name in b.leaves if name not in b.frozen), decays):
        names = list(group)
        yield decaying, (b.leaves[names[0]].first, b.leaves[names[-1]].first + b.leaves[names[-1]].size)


def _add_average(b: Builder, numbers: EMANumbers, row: int, statistics: int) -> int:
    """Of values and statistics. Returns where averages of the latter begin."""
    debias, into = int(numbers.debias), b.numbers([0.0] * statistics)
    _over_all(b, "average", into=row, debias=debias)
    columns = {"first": 0, "count": statistics, "into": into, "debias": debias}
    b.emit(lambda: ("average_constants", WHOLE, 1, columns))
    return into


def _over_all(b: Builder, name: str, **columns: int) -> None:
    _add(b, name, 0, b.trained, **columns)


def _add(b: Builder, name: str, first: int, last: int, **columns: int) -> None:
    b.emit(lambda: (name, BY_ROWS, _shares(last - first), {"first": first, "last": last, **columns}))


def _shares(count: int) -> int:
    return max(1, count // _SHARE)


def moments_of(state: Any) -> list[Any]:
    """The state's trees shaped like params: none, velocity, mean and variance, or an average."""
    if isinstance(state, AdamState):
        return [state.mean, state.variance]
    if isinstance(state, AverageState):
        return [state.params]
    return [state.velocity] if isinstance(state, SGDState) and state.velocity != () else []


def state_after(state: Any, moments: list[Any], powers: Tensor) -> Any:
    """The public state of `sgd` or `adam` again, from what the machine kept. powers: float64 (2,), of Adam's betas."""
    if isinstance(state, AdamState):
        powers = powers.clone()
        return AdamState(state.schedule, moments[0], moments[1], powers, corrections_of(powers).to(state.corrections))
    return SGDState(state.schedule, moments[0] if moments else ())
