"""The number of inferences after which a ticket has paid back the cost of finding it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, NamedTuple

from lthfunc.argument_hints import described, is_a
from lthfunc.argument_kinds import KINDS
from lthfunc.errors import ArgumentError, invalid

#: Confidence level of intervals.
LEVEL = 0.95


class Costs(NamedTuple):
    """Costs of a network in one unit (kg CO₂eq, kWh, seconds, money), for `break_even`.

    fixed: of its training or search, one number per replicate. each: of one inference, one number per repeat. paired:
    whether `fixed` has the same replicates as the other network's, in the same order.
    """

    fixed: Sequence[float]
    each: Sequence[float]
    paired: bool = False


class Estimate(NamedTuple):
    """A mean, its variance, and the degrees of freedom of that; 0 where the spread is unknown."""

    mean: float
    variance: float = 0.0
    freedom: float = 0.0


#: The ticket is cheaper from some number of inferences on, at once, never, or only up to a number; or both always cost
#: the same.
Verdict = Literal["from", "at once", "never", "up to", "equal"]


class BreakEven(NamedTuple):
    """When a ticket pays back.

    verdict: "from" some number of inferences on, "at once", "never", only "up to" a number, or "equal". inferences: the
    number at which total costs are equal; None except for "from" and "up to". low, high: its 95 % confidence interval
    (Fieller 1954); high is infinite where the data cannot exclude that the ticket never pays back (for "from") or stays
    cheaper forever (for "up to"); None without replicates or repeats. extra: the ticket's additional cost before the
    first inference. saving: what it saves per inference. certain: whether the signs of both, on which the verdict
    rests, are known with 95 % confidence.
    """

    verdict: Verdict
    inferences: float | None
    low: float | None
    high: float | None
    extra: Estimate
    saving: Estimate
    certain: bool = True


def break_even(sparse: Costs, dense: Costs) -> BreakEven:
    """Compute the number of inferences n where sparse.fixed + n sparse.each = dense.fixed + n dense.each.

    sparse, dense: costs of the ticket (its whole search) and of the dense network, in the same unit.

    Returns a `BreakEven`. Its interval is that of E. C. Fieller, *Some problems in interval estimation*, J. R. Stat.
    Soc. B 16 (1954), for a quotient of two means: it accounts for the spread of both and is not symmetric. Student's t
    has the smaller of the two degrees of freedom (Welch's where samples are not paired).

    Raises UserError where numbers are missing or not finite, or where paired costs differ in length.

    >>> import lthfunc as lf
    >>> found = lf.break_even(lf.Costs(fixed=[5.0], each=[1.0]), lf.Costs(fixed=[3.0], each=[2.0]))
    >>> found.verdict, found.inferences
    ('from', 2.0)
    """
    for side, costs in (("sparse", sparse), ("dense", dense)):
        if not is_a(costs, "Costs"):
            raise ArgumentError(f"break_even: {side} must be Costs, not {described(costs)}")
        for part, values in (("fixed", costs.fixed), ("each", costs.each)):
            if not KINDS["Sequence[float]"].fits(values) or len(values) == 0:
                raise invalid(f"{side}.{part}", values, "at least one finite number")
    if (sparse.paired or dense.paired) and len(sparse.fixed) != len(dense.fixed):
        raise invalid(
            "paired", True, f"equally many replicates of both, not {len(sparse.fixed)} and {len(dense.fixed)}"
        )
    extra = _difference(sparse.fixed, dense.fixed, paired=sparse.paired or dense.paired)
    saving = _difference(dense.each, sparse.each, paired=False)
    verdict = _VERDICTS[_sign(extra.mean), _sign(saving.mean)]
    crosses = verdict in ("from", "up to")
    inferences = extra.mean / saving.mean if crosses else None
    low, high = fieller(extra, saving) if crosses else (None, None)
    return BreakEven(verdict, inferences, low, high, extra, saving, _known(extra) and _known(saving))


#: By the signs of the ticket's extra cost before the first inference and of its saving per inference.
_VERDICTS: dict[tuple[int, int], Verdict] = {
    (1, 1): "from", (1, 0): "never", (1, -1): "never",
    (0, 1): "at once", (0, 0): "equal", (0, -1): "never",
    (-1, 1): "at once", (-1, 0): "at once", (-1, -1): "up to",
}  # fmt: skip


def _sign(number: float) -> int:
    return (number > 0) - (number < 0)


def _known(estimate: Estimate) -> bool:
    """Whether the sign is known with 95 % confidence."""
    if estimate.variance == 0:
        return True
    return abs(estimate.mean) > _student(estimate.freedom) * math.sqrt(estimate.variance)


def _student(freedom: float) -> float:
    """Student's t of a 95 % interval."""
    from scipy import stats  # takes half a second to import

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
    if a <= 0:  # the denominator may be 0, so the quotient has no upper bound
        if a == 0 or inside < 0:
            return (max(0.0, c / (2 * b)) if a == 0 and b > 0 else 0.0), math.inf
        return max(0.0, (b - math.sqrt(inside)) / a), math.inf
    root = math.sqrt(max(0.0, inside))
    return max(0.0, (b - root) / a), (b + root) / a


def total(costs: Costs, inferences: float) -> Estimate:
    """Mean and variance of the total cost of training and a number of inferences."""
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
