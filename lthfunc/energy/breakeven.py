"""From how many inferences on a ticket pays back what finding it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lthfunc.argument_hints import described, is_a
from lthfunc.argument_kinds import KINDS
from lthfunc.errors import ArgumentError, invalid

#: Of intervals.
LEVEL = 0.95


class Costs(NamedTuple):
    """In one unit (kg CO₂eq, kWh, seconds, money). fixed: of the training or search, a number per replicate.

    each: of an inference, a number per repeat. paired: whether `fixed` has the other's replicates, in their order.
    """

    fixed: Sequence[float]
    each: Sequence[float]
    paired: bool = False


class Estimate(NamedTuple):
    """A mean, the variance of the mean, and the degrees of freedom it is known by; 0 where nothing tells its spread."""

    mean: float
    variance: float = 0.0
    freedom: float = 0.0


#: What can be said: the ticket is cheaper from some number of inferences on, at once, never, or only up to a number; or
#: both cost the same, however many there are.
Verdict = Literal["from", "at once", "never", "up to", "equal"]


class BreakEven(NamedTuple):
    """verdict: what `inferences` is. inferences: where the totals are equal; None but for "from" and "up to".

    low, high: of the interval that holds it with 95 % confidence (Fieller 1954); high is infinite where the data can't
    exclude that the ticket never pays back (for "from"), or that it stays cheaper for good (for "up to"); None without
    replicates or repeats. extra: what the ticket costs more before the first inference; saving: what it saves in each.
    certain: whether the signs of both, on which the verdict rests, are known with 95 % confidence.
    """

    verdict: Verdict
    inferences: float | None
    low: float | None
    high: float | None
    extra: Estimate
    saving: Estimate
    certain: bool = True


def break_even(sparse: Costs, dense: Costs) -> BreakEven:
    """The number of inferences n where sparse.fixed + n sparse.each = dense.fixed + n dense.each.

    The interval is Fieller's for the quotient of two means: it takes the spread of both into account, and is not
    symmetric. Student's t has the smaller of the two degrees of freedom (Welch's where two samples are compared).

    Raises UserError where numbers are missing or not finite, or pairs have no partner.
    """
    for side, costs in (("sparse", sparse), ("dense", dense)):
        if not is_a(costs, "Costs"):
            raise ArgumentError(f"break_even: {side} must be Costs, not {described(costs)}")
        for part, values in (("fixed", costs.fixed), ("each", costs.each)):
            if not KINDS["Sequence[float]"].fits(values) or len(values) == 0:
                raise invalid(f"{side}.{part}", values, "one finite number or more")
    if (sparse.paired or dense.paired) and len(sparse.fixed) != len(dense.fixed):
        raise invalid("paired", True, f"as many replicates of both, not {len(sparse.fixed)} and {len(dense.fixed)}")
    extra = _difference(sparse.fixed, dense.fixed, paired=sparse.paired or dense.paired)
    saving = _difference(dense.each, sparse.each, paired=False)
    verdict = _VERDICTS[_sign(extra.mean), _sign(saving.mean)]
    crosses = verdict in ("from", "up to")
    inferences = extra.mean / saving.mean if crosses else None
    low, high = fieller(extra, saving) if crosses else (None, None)
    return BreakEven(verdict, inferences, low, high, extra, saving, _known(extra) and _known(saving))


#: By the signs of what the ticket costs more at first, and of what it saves in each inference.
_VERDICTS: dict[tuple[int, int], Verdict] = {
    (1, 1): "from", (1, 0): "never", (1, -1): "never",
    (0, 1): "at once", (0, 0): "equal", (0, -1): "never",
    (-1, 1): "at once", (-1, 0): "at once", (-1, -1): "up to",
}  # fmt: skip


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _known(estimate: Estimate) -> bool:
    """Whether its sign is known with 95 % confidence."""
    if estimate.variance == 0:
        return True
    return abs(estimate.mean) > _student(estimate.freedom) * math.sqrt(estimate.variance)


def _student(freedom: float) -> float:
    """Student's t of a 95 % interval."""
    from scipy import stats  # half a second, which other commands need not wait for

    return float(stats.t.ppf(0.5 + LEVEL / 2, freedom))


def fieller(top: Estimate, bottom: Estimate) -> tuple[float | None, float | None]:
    """The interval of top / bottom, cut at 0; (None, None) where neither has a spread.

    E. C. Fieller, Some problems in interval estimation, J. R. Stat. Soc. B 16 (1954): all q for which
    top - q bottom does not differ from 0.
    """
    known = [each.freedom for each in (top, bottom) if each.freedom > 0]
    if not known:
        return None, None
    t = _student(min(known))
    a = bottom.mean**2 - t**2 * bottom.variance
    b = top.mean * bottom.mean
    c = top.mean**2 - t**2 * top.variance
    inside = b**2 - a * c
    if a <= 0:  # the bottom may be 0: nothing bounds the quotient from above
        if a == 0 or inside < 0:
            return (max(0.0, c / (2 * b)) if a == 0 and b > 0 else 0.0), math.inf
        return max(0.0, (b - math.sqrt(inside)) / a), math.inf
    root = math.sqrt(max(0.0, inside))
    return max(0.0, (b - root) / a), (b + root) / a


def total(costs: Costs, inferences: float) -> Estimate:
    """Of the training and so many inferences: mean and variance."""
    fixed, each = _estimate(costs.fixed), _estimate(costs.each)
    return Estimate(fixed.mean + inferences * each.mean, fixed.variance + inferences**2 * each.variance)


def _estimate(values: Sequence[float]) -> Estimate:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean)
    return Estimate(mean, statistics.variance(values) / len(values), len(values) - 1)


def _difference(mine: Sequence[float], theirs: Sequence[float], *, paired: bool) -> Estimate:
    if paired:
        return _estimate([one - other for one, other in zip(mine, theirs, strict=True)])
    left, right = _estimate(mine), _estimate(theirs)
    variance = left.variance + right.variance
    parts = [each.variance**2 / each.freedom for each in (left, right) if each.freedom > 0]
    freedom = variance**2 / sum(parts) if parts and sum(parts) else max(left.freedom, right.freedom)
    return Estimate(left.mean - right.mean, variance, freedom)
