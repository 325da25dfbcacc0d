"""Learning-rate schedules as data: a float64 table, one entry per step; past its end the last entry applies.

A table instead of a formula keeps `cos` and `pow` out of the compiled step, which would compute them for every weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.printable import dtype_and_shape

#: Learning rates, float64, shape (steps,); entry i is used in the step that starts at `TrainState.step == i`.
Schedule = Tensor
#: The share of a schedule's highest rate below which weights hardly move (one-cycle ends at 4e-6).
_STANDSTILL = 1e-5


def as_schedule(lr: float | Schedule) -> Schedule:
    """A number as a constant schedule. Raises UserError for a tensor that is no schedule."""
    if not isinstance(lr, torch.Tensor):
        return constant(lr)
    _check_table("lr", lr)
    return lr


def rate_at(schedule: Schedule, step: Tensor) -> Tensor:
    """The learning rate of a step: a scalar on the schedule's device, in its dtype."""
    # index_select, and not schedule[step]: it compiles whole, and runs under vmap.
    return torch.index_select(schedule, 0, step.clamp(max=schedule.numel() - 1).reshape(1)).squeeze(0)


@public
def constant(lr: float) -> Schedule:
    """A schedule with the rate `lr` in every step. Raises UserError for a rate that is not above 0.

    >>> lf.constant(0.1)
    tensor([0.1000], dtype=torch.float64)
    """
    return torch.tensor([lr], dtype=torch.float64)


@public
def stepwise(lr: float, milestones: Sequence[int], gamma: float = 0.1, final: float = 0.0) -> Schedule:
    """A schedule that multiplies `lr` by `gamma` at each of the milestones (steps), as torch's MultiStepLR.

    final: the rate that it doesn't fall below. Raises UserError for numbers out of range.

    >>> lf.stepwise(1.0, [2, 3])
    tensor([1.0000, 1.0000, 0.1000, 0.0100], dtype=torch.float64)
    """
    _check_final(final, lr)
    last = max(milestones, default=0)
    table = constant(lr).repeat(last + 1)
    for milestone in milestones:
        table[milestone:] *= gamma
    return table.clamp(min=final)


@public
def cosine(lr: float, steps: int, final: float = 0.0) -> Schedule:
    """A schedule that falls from `lr` to `final` at step `steps` along half a cosine (Loshchilov & Hutter 2017, eq. 5).

    Raises UserError for numbers out of range.

    >>> lf.cosine(1.0, steps=2)
    tensor([1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    _check_final(final, lr)
    turn = torch.arange(steps + 1, dtype=torch.float64) * (torch.pi / steps)
    return final + (constant(lr) - final) * (1 + torch.cos(turn)) / 2


@public
def cyclic(lr: float, steps: int, cycles: int, final: float = 0.0) -> Schedule:
    """A schedule of `cycles` cosines in `steps` steps, each from `lr` to `final` (Loshchilov & Hutter 2017, eq. 5).

    Raises UserError for numbers out of range.

    >>> lf.cyclic(1.0, steps=4, cycles=2)
    tensor([1.0000, 0.5000, 1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    if not 1 <= cycles <= steps:
        raise invalid("cycles", cycles, f"a whole number from 1 to {steps}, the steps")
    ends = [round(steps * k / cycles) for k in range(cycles + 1)]
    lengths = [end - start for start, end in pairwise(ends)]
    tables = [cosine(lr, length, final) for length in lengths]
    return torch.cat([*(table[:-1] for table in tables), tables[-1][-1:]])


@public
def warmup(schedule: Schedule, steps: int) -> Schedule:
    """The schedule with its first `steps` rates multiplied by 1/steps, 2/steps … 1.

    Raises UserError for a negative number of steps, one that goes on when the schedule has fallen to 0, or a tensor
    that is no schedule.

    >>> lf.warmup(lf.constant(1.0), steps=4)
    tensor([0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """
    _check_table("schedule", schedule)
    if steps == 0:
        return schedule
    end = ends_at(schedule, steps)
    if end is not None:
        raise invalid("steps", steps, f"a whole number from 0 to {end}, where the schedule ends")
    missing = max(0, steps - schedule.numel())
    table = torch.cat([schedule, schedule[-1:].repeat(missing)])
    table[:steps] *= torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return table


@public
def one_cycle(lr: float, steps: int, rise: float = 0.3, start: float = 0.04, end: float = 4e-6) -> Schedule:
    """A schedule of two half cosines, as torch's OneCycleLR (Smith & Topin 2018).

    In the share `rise` of `steps` it rises from `start` · lr to lr, then falls to `end` · lr. Raises UserError for
    numbers out of range.

    >>> lf.one_cycle(1.0, steps=5, rise=0.6, start=0.5, end=0.0)
    tensor([0.5000, 0.7500, 1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    up, last = rise * steps - 1, steps - 1
    at_step = torch.arange(steps, dtype=torch.float64)
    rising = _between(start, 1, (at_step / max(up, 1e-9)).clamp(max=1))
    falling = _between(1, end, ((at_step - up) / max(last - up, 1e-9)).clamp(min=0))
    return constant(lr) * torch.where(at_step <= up, rising, falling)


@public
def triangular(lr: float, steps: int, rise: float = 0.23, start: float = 0.2, end: float = 0.07) -> Schedule:
    """A schedule that rises linearly from `start` · lr to lr in the share `rise` of `steps`, then falls to `end` · lr.

    The defaults are those of fast CIFAR training (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds"). Raises UserError for
    numbers out of range.

    >>> lf.triangular(1.0, steps=4, rise=0.5, start=0.5, end=0.0)
    tensor([0.5000, 0.7500, 1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    peak = rise * steps
    at_step = torch.arange(steps + 1, dtype=torch.float64)
    rising = start + (1 - start) * at_step / max(peak, 1e-9)
    falling = 1 + (end - 1) * (at_step - peak) / max(steps - peak, 1e-9)
    return constant(lr) * torch.where(at_step < peak, rising, falling)


@public
def trapezoidal(lr: float, steps: int, rise: float = 0.05, fall: float = 0.2, final: float = 0.0) -> Schedule:
    """A schedule that rises in the share `rise` of `steps`, stays at `lr`, and falls in the last share `fall`.

    It falls linearly to `final` (Hägele et al. 2024). Raises UserError for numbers out of range.

    >>> lf.trapezoidal(1.0, steps=4, rise=0.5, fall=0.5)
    tensor([0.5000, 1.0000, 1.0000, 0.5000, 0.0000], dtype=torch.float64)
    """
    _check_final(final, lr)
    if rise + fall > 1:
        raise invalid("fall", fall, f"a share that leaves room for rise, {rise}")
    at_step = torch.arange(steps + 1, dtype=torch.float64)
    up, down = (at_step + 1) / max(rise * steps, 1), (steps - at_step) / max(fall * steps, 1)
    return torch.minimum(constant(lr) * up.clamp(max=1), final + (constant(lr) - final) * down.clamp(max=1))


def ends_at(schedule: Schedule, until: int) -> int | None:
    """The step from which on a training to step `until` would change nothing, or None.

    That is past the schedule's end, if its last rate, which then applies, is 0 or almost 0.
    """
    return all_end_at([schedule], until)[0]


def all_end_at(schedules: Sequence[Schedule], until: int) -> list[int | None]:
    """The same for several schedules on one device, which is waited for once."""
    ends = torch.stack([torch.stack([each[-1], each.max()]) for each in schedules]).tolist() if schedules else []
    # A table that ends in 0 itself has an entry more than steps.
    stops = [each.numel() - (last == 0) for (last, _), each in zip(ends, schedules, strict=True)]
    still = [last <= _STANDSTILL * most for last, most in ends]
    return [stop if so and until > stop else None for stop, so in zip(stops, still, strict=True)]


def _check_table(name: str, table: Schedule) -> None:
    """Raise UserError for a tensor that is no schedule."""
    good = table.ndim == 1 and table.numel() > 0 and table.is_floating_point() and table.layout == torch.strided
    if not good or (table.device.type == "cpu" and not bool(((table >= 0) & table.isfinite()).all())):
        raise UserError(
            f"{name}: a table of rates is one row of floats, one for each step, not {dtype_and_shape(table)}"
            if not good
            else f"{name}: a rate in the table is negative or not finite"
        )


def _check_final(final: float, lr: float) -> None:
    if not 0 <= final <= lr:
        raise invalid("final", final, f"a number from 0 to lr, {lr:g}")


def _between(first: float, last: float, way: Tensor) -> Tensor:
    """A value along half a cosine. way: from 0 to 1."""
    return last + (first - last) * (1 + torch.cos(torch.pi * way)) / 2
