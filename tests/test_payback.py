"""From when on a ticket pays back, by published formulas."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run
from scipy import stats

from lthfunc.energy.breakeven import Costs, Estimate, break_even, fieller, total
from lthfunc.errors import UserError
from lthfunc.reports.breakeven import break_evens, run_costs
from lthfunc.reports.charts import Bars
from lthfunc.reports.page.measurement_pictures import measured_pictures


def test_breakeven_of_published_constants(capsys: Any) -> None:
    """90 % in one go, and 68 % twice, against the dense network: kg at once, and per 50,000 inferences."""
    dense = "5.33871e-4+1.71e-4/50000"
    for sparse, expected in (
        ("1.10081e-3+8.06e-5/50000", (1.10081e-3 - 5.33871e-4) / ((1.71e-4 - 8.06e-5) / 50000)),
        ("1.66517e-3+6.49e-5/50000", (1.66517e-3 - 5.33871e-4) / ((1.71e-4 - 6.49e-5) / 50000)),
    ):
        assert run("breakeven", sparse, dense, "--json") == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert result["verdict"] == "from"
        assert result["inferences"] == pytest.approx(expected, rel=1e-12)
        assert (result["low"], result["high"]) == (None, None)  # one number has no spread
    assert expected == pytest.approx(5.33e5, rel=1e-3)
    assert run("breakeven", "1.10081e-3+8.06e-5/50000", dense) == 0
    assert "from 313,572 inferences" in capsys.readouterr().out


def test_a_ticket_may_pay_back_never_or_at_once() -> None:
    assert break_even(Costs([2.0], [3.0]), Costs([1.0], [2.0])).verdict == "never"
    assert break_even(Costs([2.0], [2.0]), Costs([1.0], [2.0])).verdict == "never"
    assert break_even(Costs([1.0], [1.0]), Costs([2.0], [2.0])).verdict == "at once"
    until = break_even(Costs([1.0], [3.0]), Costs([2.0], [2.0]))
    assert (until.verdict, until.inferences) == ("up to", 1.0)


def test_totals_propagate_both_spreads() -> None:
    costs = Costs([1.0, 2.0, 3.0], [0.1, 0.3])
    found = total(costs, 10)
    assert found.mean == pytest.approx(2 + 10 * 0.2)
    assert found.variance == pytest.approx(1 / 3 + 100 * 0.02 / 2)


def test_fiellers_interval_is_where_the_difference_may_be_zero() -> None:
    top, bottom = Estimate(10.0, 1.0, 4), Estimate(2.0, 0.04, 4)
    low, high = fieller(top, bottom)
    assert low is not None
    assert high is not None
    t = 2.7764451051977987  # Student's, 4 degrees of freedom
    for end in (low, high):
        assert (top.mean - end * bottom.mean) ** 2 == pytest.approx(t**2 * (top.variance + end**2 * bottom.variance))
    assert low < 5 < high
    assert high - 5 > 5 - low  # not symmetric
    unsure = fieller(top, Estimate(2.0, 4.0, 4))
    assert unsure[1] == math.inf
    assert fieller(Estimate(1.0), Estimate(1.0)) == (None, None)
    exact = fieller(Estimate(10.0, 1.0, 4), Estimate(2.0))
    assert exact == pytest.approx((5 - t / 2, 5 + t / 2))


@pytest.mark.parametrize("who", ["sparse", "dense", None])
def test_replicates_in_pairs_are_compared_in_pairs(who: str | None) -> None:
    """What seeds have in common drops out of the difference: Student's paired interval, else Welch's, as SciPy's."""
    dense = np.array([10.0, 14.0, 19.0, 23.0, 31.0])
    sparse = dense + np.array([2.0, 2.5, 1.5, 2.2, 1.9])
    found = break_even(
        Costs(sparse.tolist(), [1.0], paired=who == "sparse"), Costs(dense.tolist(), [1.5], paired=who == "dense")
    )
    test = stats.ttest_rel(sparse, dense) if who else stats.ttest_ind(sparse, dense, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert found.inferences == pytest.approx((sparse - dense).mean() / 0.5)
    assert found.low == pytest.approx(max(0.0, interval.low / 0.5))
    assert found.high == pytest.approx(interval.high / 0.5)
    assert found.extra.freedom == pytest.approx(test.df)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator, inside, tries = np.random.default_rng(0), 0, 600
    for _ in range(tries):
        fixed = generator.normal(10, 1, (2, 6)) + np.array([[5], [0]])
        each = generator.normal(0, 0.02, (2, 6)) + np.array([[1.0], [1.5]])
        found = break_even(Costs(fixed[0], each[0], paired=True), Costs(fixed[1], each[1]))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 10 <= found.high
    assert 0.93 < inside / tries < 0.985


def timed(batch: int, turns: dict[str, list[float]], **about: Any) -> dict[str, Any]:
    """What `lthfunc specialize` keeps of its timings, as far as break-even and pictures read it."""
    seconds = {name: statistics.median(found) for name, found in turns.items()}
    return {
        "kind": "execution", "round": 1, "form": "layers", "program": "layers of the whole", "batch_size": batch,
        "turns": turns, "seconds_a_batch": seconds, "bytes": {"dense": 100, "program": 40}, "compression_ratio": 2.0,
        "theoretical_speedup": 2.0, "machine": {"gpu": None, "processor": "CPU"}, **about,
    }  # fmt: skip


RECORDS = [
    {"variant": "ticket", "seed": seed, "round": number, "seconds": 10.0 + seed, "density": 0.5**number}
    for seed in (0, 1) for number in (0, 1)
]  # fmt: skip


def test_a_run_that_was_timed_alone_reckons_in_time() -> None:
    """Without a meter: the seconds of trainings, and of inferences by the turns of `lthfunc specialize`."""
    steady = {"dense": [2.0, 4.0, 3.0], "layers of the whole": [1.0, 1.0, 1.0], "sparse": [9.0] * 3}
    measured = [timed(1, {name: [1.0] * 3 for name in steady}), timed(10, steady)]
    sides = [run_costs("RUN", RECORDS, measured, dense=dense, format=format)
             for dense, format in ((False, "specialised"), (True, "dense"))]  # fmt: skip
    (found,) = break_evens(*sides, same=True, price=0.3, evaluation=False)
    assert (found.quantity, found.sparse.each, found.dense.each) == ("time", [0.1] * 3, [0.2, 0.4, 0.3])
    assert found.found.inferences == pytest.approx(10.5 / 0.2)
    assert found.found.low is not None
    assert found.found.low < 10.5 / 0.2
    with pytest.raises(UserError, match="masked was not measured, only dense, specialised"):
        run_costs("RUN", RECORDS, measured, dense=False, format="masked")
    (old,) = break_evens(*(
        run_costs("RUN", RECORDS, [{**measured[1], "turns": None, "form": "sparse", "program": "sparse"}], dense=dense,
                  format="dense" if dense else "specialised") for dense in (False, True)
    ), same=True, price=None, evaluation=False)  # fmt: skip
    assert old.found.verdict == "never"


def test_every_batch_size_is_in_the_picture() -> None:
    fast = {"dense": [2.0, 2.0, 2.0], "layers of the whole": [1.0, 1.0, 1.0]}
    loaded = {"dense": [3.0, 3.0, 900.0], "layers of the whole": [1.0, 1.0, 1.0]}
    measured = [timed(64, loaded), timed(1, loaded), timed(64, fast), timed(8, fast, round=0)]
    picture, *_ = measured_pictures("RUN", RECORDS, measured[:3])
    assert isinstance(picture, Bars)
    assert [name for name, *_ in picture.groups] == ["batches of 1", "batches of 64"]
    assert picture.labels == ["layers of the whole", "dense"]
    assert picture.groups[1][1] == [1e6 / 64, 2e6 / 64]
    assert "the chosen program is 2.0 (batches of 64) times as fast" in picture.caption  # of the other none can be told
    old = {**measured[2], "turns": None, "program": None}  # before turns were kept
    picture, *_ = measured_pictures("RUN", RECORDS, [old])
    assert picture.caption == "Medians of turns, round 1 on CPU."
    picture, *_ = measured_pictures("RUN", RECORDS, measured)
    assert isinstance(picture, Bars)
    assert [name for name, *_ in picture.groups] == ["batches of 8"]  # of that round


def test_a_run_without_energy_still_reckons_in_time(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("codecarbon")
    folder = tmp_path / "run"
    assert run("prune", "--rounds", 1, "--steps", 20, "--out", folder) == 0
    assert run("energy", folder, "--samples", 500, "--repeats", 2, "--batch-size", 50) == 0
    capsys.readouterr()
    assert run("breakeven", folder) == 0
    out = capsys.readouterr().out
    assert "time [s]" in out
    assert "emissions" not in out
    assert "only the time of these trainings is known" in out
