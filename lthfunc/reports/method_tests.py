"""Paired tests of methods against one of them, corrected for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.table import Table

from lthfunc.experiments.metrics import MetricScale
from lthfunc.reports.run_comparison import Paired, paired
from lthfunc.reports.tables import plain_table

#: Test accuracies by seed, of methods at densities.
Values = Mapping[tuple[str, float], Mapping[int, float]]


class Comparison(NamedTuple):
    """A method against the baseline at the same density, over the seeds that both have.

    corrected: p, adjusted for the number of tests; None where there is no p.
    """

    method: str
    density: float
    paired: Paired
    corrected: float | None


def compared_to(baseline: str, values: Values) -> list[Comparison]:
    """Student's paired t-tests of all other methods against one, at each density that both have.

    p is corrected for the number of tests by Benjamini & Hochberg's procedure (1995; `scipy.stats`), which bounds the
    expected share of false findings.
    """
    found = []
    for (method, density), mine in values.items():
        theirs = values.get((baseline, density))
        if method != baseline and theirs is not None and (test := paired(dict(mine), dict(theirs))) is not None:
            found.append(Comparison(method, density, test, None))
    corrected = iter(_corrected([each.paired.p for each in found if each.paired.p is not None]))
    return [each if each.paired.p is None else each._replace(corrected=next(corrected)) for each in found]


def _corrected(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the same order."""
    if not ps:
        return []
    from scipy import stats  # half a second, which other commands need not wait for

    return [float(each) for each in stats.false_discovery_control(ps, method="bh")]


def test_table(tests: Sequence[Comparison], scale: MetricScale) -> Table | None:
    """Differences to the baseline at each density, with corrected p; None where no two methods share two seeds."""
    if all(test.corrected is None for test in tests):
        return None
    densities = sorted({test.density for test in tests}, reverse=True)
    table = plain_table("method", *(f"at {100 * each:g} %" for each in densities))
    cells = {(test.method, test.density): difference_in_words(test, scale) for test in tests}
    for method in dict.fromkeys(test.method for test in tests):
        table.add_row(method, *(cells.get((method, density), "–") for density in densities))
    return table


def difference_in_words(test: Comparison, scale: MetricScale) -> str:
    """The mean difference, and p where there is one."""
    difference = scale.number(test.paired.difference.mean, signed=True)
    if test.corrected is None:
        return difference
    return f"{difference}, p " + ("< 0.001" if test.corrected < 0.001 else f"= {test.corrected:.3f}")


def tests_as_values(tests: Sequence[Comparison], baseline: str) -> list[dict[str, Any]]:
    """For machines: differences of accuracies in [0, 1]."""
    return [
        {
            "method": each.method, "baseline": baseline, "at": each.density, "shared_seeds": each.paired.seeds,
            "difference": each.paired.difference.mean, "difference_std": each.paired.difference.std,
            "p": each.paired.p, "p_corrected": each.corrected,
        }
        for each in tests
    ]  # fmt: skip
