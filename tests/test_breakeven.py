"""Break-even: every combination of signs, with and without a spread, against totals counted out; and its words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lthfunc.energy.breakeven import BreakEven, Costs, break_even
from lthfunc.errors import UserError
from lthfunc.reports.breakeven import (
    as_values,
    breakeven_chart,
    breakeven_table,
    in_words,
    interval_in_words,
    pair_break_even,
    sentence,
)

SIGNS = list(itertools.product((-1, 0, 1), repeat=2))
#: Of a search that costs 100 more (or less), and an inference that saves 2 (or costs 2 more).
EXTRA, SAVING, CROSSING = 100.0, 2.0, 50


def cheaper(extra: int, saving: int) -> list[bool]:
    """Whether the ticket is, after 0 … 99 inferences."""
    return [1000 + extra * EXTRA + n * (10 - saving * SAVING) < 1000 + n * 10 for n in range(100)]


def found(extra: int, saving: int, spread: float = 0.0) -> BreakEven:
    """The answer; with a spread, each number is one of five."""
    around = spread * np.array([-2.0, -1.0, 0.0, 1.0, 2.0]) if spread else np.zeros(1)
    return break_even(
        Costs(list(1000 + extra * EXTRA + 10 * around), list(10 - saving * SAVING + around / 10)),
        Costs([1000.0] * len(around), [10.0] * len(around)),
    )


@pytest.mark.parametrize(("extra", "saving"), SIGNS)
@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_every_combination_of_signs_has_its_answer(extra: int, saving: int, spread: float) -> None:
    answer = found(extra, saving, spread)
    truth = cheaper(extra, saving)
    words = in_words(answer)
    if extra == saving == 0:
        assert (answer.verdict, words) == ("equal", "never: both cost the same")
        assert not any(truth)
    elif all(truth[1:]):
        assert (answer.verdict, words) == ("at once", "at once")
    elif not any(truth):
        assert (answer.verdict, words) == ("never", "never")
    else:
        kind = "from" if truth[-1] else "up to"
        assert truth.index(truth[-1]) in (CROSSING, CROSSING + 1)
        assert answer.verdict == kind
        assert answer.inferences == pytest.approx(CROSSING)
        assert words == ("from 50 inferences on" if kind == "from" else "only up to 50 inferences")
    crosses = answer.verdict in ("from", "up to")
    assert (answer.inferences is not None) == crosses
    assert (answer.low is not None) == (answer.high is not None) == (crosses and spread > 0)
    if answer.low is not None and answer.high is not None:
        assert answer.low < CROSSING < answer.high < math.inf
    # A zero with a spread may be either side of it.
    assert answer.certain == (spread == 0 or (extra != 0 and saving != 0))
    assert sentence(answer).endswith(".")


@pytest.mark.parametrize(
    ("extra", "saving", "interval"),
    [(1, 1, "at once to never"), (-1, -1, "never to for good"), (1, -1, "not certain"), (-1, 1, "not certain")],
)
def test_a_spread_that_hides_the_signs_is_told(extra: int, saving: int, interval: str) -> None:
    answer = found(extra, saving, 100.0)
    assert not answer.certain
    assert interval_in_words(answer) == interval


def test_a_saving_that_may_be_none_has_no_upper_end() -> None:
    """The search's difference is known, the inference's isn't."""
    each = [8.0, 7.0, 9.0, 12.0, 4.0]
    answer = break_even(Costs([1100.0] * 5, each), Costs([1000.0] * 5, [10.0] * 5))
    assert (answer.verdict, answer.certain, answer.high) == ("from", False, math.inf)
    low = 100 / (2 + 2.7764451051977987 * np.std(each, ddof=1) / 5**0.5)
    assert answer.low == pytest.approx(low)
    assert interval_in_words(answer) == f"{low:.0f} to never"
    other = break_even(Costs([900.0] * 5, [20 - value for value in each]), Costs([1000.0] * 5, [10.0] * 5))
    assert (other.verdict, other.high) == ("up to", math.inf)
    assert other.low == pytest.approx(low)
    assert interval_in_words(other) == f"{low:.0f} to for good"


@pytest.mark.parametrize(
    ("sparse", "words"),
    [
        ((1101.0, 9.0), "from 101 inferences on"),
        ((1001.0, 9.0), "from 1 inference on"),
        ((1000.1, 9.0), "from the first inference on"),
        ((999.0, 11.0), "only up to 1 inference"),
        ((999.9, 11.0), "only before the first inference"),
    ],
)
def test_numbers_are_worded(sparse: tuple[float, float], words: str) -> None:
    answer = break_even(Costs([sparse[0]], [sparse[1]]), Costs([1000.0], [10.0]))
    assert in_words(answer) == words
    assert sentence(answer) == f"It pays back {words}."


@pytest.mark.parametrize(("extra", "saving"), SIGNS)
def test_tables_pictures_and_values_say_the_same(extra: int, saving: int) -> None:
    sides = [Costs([1000 + extra * EXTRA], [10 - saving * SAVING]), Costs([1000.0], [10.0])]
    answer = pair_break_even("energy", "kWh", *sides)
    (column,) = [each for each in breakeven_table([answer]).columns if each.header == "it pays back"]
    assert list(column.cells) == [in_words(answer.found)]
    chart = breakeven_chart(answer)
    assert chart.caption == sentence(answer.found)
    assert {"never": "It never pays back.", "equal": "Both cost the same.", "at once": "It pays back at once."}.get(
        answer.found.verdict, chart.caption
    ) == chart.caption
    assert chart.series[0].x[-1] > 0
    (values,) = as_values([answer])
    assert values["verdict"] == answer.found.verdict
    assert (values["inferences"] is None) == (answer.found.verdict in ("never", "at once", "equal"))


def test_costs_of_nothing_are_equal() -> None:
    answer = pair_break_even("time", "s", Costs([0.0], [0.0]), Costs([0.0], [0.0]))
    assert answer.found.verdict == "equal"
    assert breakeven_chart(answer).series[0].x[-1] > 0


@pytest.mark.parametrize(
    ("sparse", "dense", "words"),
    [
        (
            Costs([], [1.0]),
            Costs([1.0], [1.0]),
            r"sparse.fixed: invalid value \[\] \(expected at least one finite number",
        ),
        (Costs([1.0], [1.0]), Costs([1.0], [math.nan]), r"dense.each: invalid value \[nan\]"),
        (Costs([1.0], [math.inf]), Costs([1.0], [1.0]), r"sparse.each: invalid value \[inf\]"),
        (Costs([1.0, 2.0], [1.0], paired=True), Costs([1.0], [1.0]), "equally many replicates of both, not 2 and 1"),
    ],
)
def test_costs_that_are_none_are_refused(sparse: Costs, dense: Costs, words: str) -> None:
    with pytest.raises(UserError, match=words):
        break_even(sparse, dense)
