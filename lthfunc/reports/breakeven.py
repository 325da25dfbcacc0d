"""Costs of tickets and dense networks from runs, and when the ticket pays back, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from rich.table import Table

from lthfunc.energy.breakeven import BreakEven, Costs, Estimate, break_even, total
from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record
from lthfunc.reports.charts import BLUE, ORANGE, Chart, Series
from lthfunc.reports.tables import plain_table
from lthfunc.runs.measurements import timings_of

#: What is compared: its unit, and its name in records.
QUANTITIES = {
    "emissions": ("kg CO₂eq", "kg"), "energy": ("kWh", "kwh"), "time": ("s", "seconds"), "money": ("", "kwh"),
}  # fmt: skip
#: Units in which tables and pictures show others, and how many of them make one.
_SHOWN = {"kg CO₂eq": ("g CO₂eq", 1000), "kWh": ("Wh", 1000)}
#: Phases that a search is charged for; evaluation is optional.
_SEARCH = ("preparation", "training")
_EVALUATION = ("evaluation",)


class PairBreakEven(NamedTuple):
    """The costs of a ticket and of the dense network in one quantity, and when the ticket pays back."""

    quantity: str
    unit: str
    sparse: Costs
    dense: Costs
    found: BreakEven


class RunCosts(NamedTuple):
    """What a run knows of a ticket's or a dense network's costs.

    searches: the records of the trainings that it needs, by seed. each: the cost of one inference in "seconds" and, if
    metered, in "kg" and "kwh", one number per repeat. how: it was measured, in words.
    """

    searches: dict[int, list[Record]]
    each: dict[str, list[float]]
    how: str


def run_costs(
    name: str, records: Sequence[Record], measured: Sequence[Mapping[str, Any]], *, dense: bool, format: str
) -> RunCosts:
    """Costs of a run's ticket (the one whose inference was measured last) or of its dense network.

    format: a program of the measurement. Raises UserError where inference was not measured.
    """
    metered = [item for item in measured if item["kind"] == "energy"]
    timed = [(item, found) for item in measured if item["kind"] == "execution" and (found := timings_of(item))]
    calm = [each for each in timed if not each[1].disturbed]
    if metered:
        item = metered[-1]
        costs = {program: {name: cost[name]["values"] for name in ("kg", "kwh", "seconds")}
                 for program, cost in item["formats"].items()}  # fmt: skip
        how = f"{item['source']}, electricity of {item['country']}"
    elif calm:
        item, times = calm[-1]
        programs = {"dense": "dense", "specialised": item.get("program") or item["form"]}
        costs = {name: {"seconds": [seconds / times.batch for seconds in times.turns[program]]}
                for name, program in programs.items() if program in times.turns}  # fmt: skip
        how = "timed by specialize"
    else:
        raise UserError(
            f"{name}: the cost of inference was not measured{' while the machine was idle' if timed else ''}; "
            f"measure its time with: lthfunc specialize {name}, or also its energy with: lthfunc energy {name}"
        )
    if format not in costs:
        raise UserError(f"{name}: {format} was not measured, only {', '.join(costs)}")
    last = 0 if dense else item["round"]
    mine = [each for each in records if each["variant"] == TICKET and each["round"] <= last]
    searches: dict[int, list[Record]] = {}
    for each in mine:
        searches.setdefault(each["seed"], []).append(each)
    whole = {seed: each for seed, each in searches.items() if len(each) == last + 1}
    if not whole:
        raise UserError(f"{name}: no seed has finished its trainings up to round {last}")
    where = item["machine"]["gpu"] or item["machine"]["processor"]
    return RunCosts(whole, costs[format], f"batches of {item['batch_size']} on {where}, {how}")


def pair_break_even(quantity: str, unit: str, sparse: Costs, dense: Costs) -> PairBreakEven:
    """When a ticket pays back in one quantity."""
    return PairBreakEven(quantity, unit, sparse, dense, break_even(sparse, dense))


def break_evens(
    sparse: RunCosts, dense: RunCosts, *, same: bool, price: float | None, evaluation: bool
) -> list[PairBreakEven]:
    """When the ticket pays back, by quantity: time always, the others where trainings were metered.

    same: whether both are of one run, so that replicates are pairs. price: of a kWh.
    """
    phases = _SEARCH + (_EVALUATION if evaluation else ())
    seeds = sorted(sparse.searches.keys() & dense.searches.keys()) if same else []
    found = []
    for quantity, (unit, name) in QUANTITIES.items():
        factor = price if quantity == "money" else 1.0
        if factor is not None:
            mine, theirs = (
                _costs(side, name, factor, phases, seeds or sorted(side.searches), paired=same)
                for side in (sparse, dense)
            )
            if mine is not None and theirs is not None:
                found.append(pair_break_even(quantity, unit, mine, theirs))
    return found


def breakeven_table(found: Sequence[PairBreakEven]) -> Table:
    """A line per quantity."""
    heads = ("dense training", "extra to find it", "dense inference", "saved in each", "it pays back", "95 % interval")
    table = plain_table("quantity", *heads)
    for pair in map(_shown, found):
        each, answer = fmean(pair.dense.each), pair.found
        share = 100 * answer.saving.mean / each if each else 0.0
        table.add_row(
            f"{pair.quantity}{f' [{pair.unit}]' if pair.unit else ''}",
            f"{fmean(pair.dense.fixed):.4g}", _with_error(answer.extra), f"{each:.3e}",
            f"{_with_error(answer.saving)} ({share:.0f} %)", in_words(answer), interval_in_words(answer),
        )  # fmt: skip
    return table


def _shown(pair: PairBreakEven) -> PairBreakEven:
    unit, factor = _SHOWN.get(pair.unit, (pair.unit, 1))
    sparse, dense = (
        costs._replace(fixed=[factor * value for value in costs.fixed], each=[factor * value for value in costs.each])
        for costs in (pair.sparse, pair.dense)
    )
    return pair_break_even(pair.quantity, unit, sparse, dense)


def in_words(answer: BreakEven) -> str:
    """When the ticket pays back, in words."""
    if answer.inferences is None:
        return "never: both cost the same" if answer.verdict == "equal" else answer.verdict
    known = answer.low is not None  # without a spread the number is exact
    count = _count(answer.inferences) if known else f"{answer.inferences:,.0f}"
    if answer.verdict == "up to":
        return "only before the first inference" if count == "0" else f"only up to {_inferences(count)}"
    return "from the first inference on" if count == "0" else f"from {_inferences(count)} on"


def interval_in_words(answer: BreakEven) -> str:
    """The interval in words; empty where the spread is unknown."""
    if answer.low is None or answer.high is None:
        return "" if answer.certain else "not certain"
    first, last = ("at once", "never") if answer.verdict == "from" else ("never", "for good")
    low = first if answer.low == 0 else _count(answer.low)
    return f"{low} to {last if math.isinf(answer.high) else _count(answer.high)}"


def sentence(answer: BreakEven) -> str:
    """Both as a sentence."""
    phrase = {"never": "It never pays back", "equal": "Both cost the same"}.get(answer.verdict)
    interval = interval_in_words(answer)
    spread = f" ({interval})" if interval == "not certain" else f" (95 %: {interval})" if interval else ""
    return f"{phrase or f'It pays back {in_words(answer)}'}{spread}."


def breakeven_chart(pair: PairBreakEven) -> Chart:
    """Total costs over inferences, with bands of one standard error."""
    pair = _shown(pair)
    crossing = pair.found.inferences or 0.0
    fixed = fmean(pair.sparse.fixed) + fmean(pair.dense.fixed)
    reach = 2 * crossing if crossing > 0 else 2 * fixed / (fmean(pair.dense.each) or 1.0) or 1.0
    xs = [reach * at / 40 for at in range(41)]
    lines = []
    for name, costs, colour in (("dense", pair.dense, ORANGE), ("ticket", pair.sparse, BLUE)):
        points = [total(costs, x) for x in xs]
        lines.append(
            Series(name, xs, [each.mean for each in points], [math.sqrt(each.variance) for each in points], colour,
                   marker=None)
        )  # fmt: skip
    unit = f" ({pair.unit})" if pair.unit else ""
    return Chart(
        f"breakeven_{pair.quantity}", f"Break-even: {pair.quantity}", "inferences",
        f"{pair.quantity} of training and inference{unit}", lines, zero=True,
        caption=sentence(pair.found),
    )  # fmt: skip


def as_values(found: Sequence[PairBreakEven]) -> list[dict[str, Any]]:
    """Plain values; an interval without an upper end has None for it, and `bounded` false."""
    return [
        {
            "quantity": pair.quantity, "unit": pair.unit, "verdict": answer.verdict,
            "inferences": answer.inferences, "low": answer.low,
            "high": None if answer.high is None or math.isinf(answer.high) else answer.high,
            "bounded": answer.high is not None and not math.isinf(answer.high), "certain": answer.certain,
            "sparse": {"fixed": list(pair.sparse.fixed), "each": list(pair.sparse.each)},
            "dense": {"fixed": list(pair.dense.fixed), "each": list(pair.dense.each)},
        }
        for pair in found for answer in [pair.found]
    ]  # fmt: skip


def _costs(
    side: RunCosts, name: str, factor: float, phases: Sequence[str], seeds: Sequence[int], *, paired: bool
) -> Costs | None:
    """Of each seed's trainings and of an inference; None where one of them was not metered and it isn't time."""
    if name not in side.each:
        return None
    totals = []
    for seed in seeds:
        records = side.searches[seed]
        if all("energy" in item for item in records):
            totals.append(factor * sum(item["energy"][phase][name] for item in records for phase in phases))
        elif name == "seconds":
            totals.append(sum(item["seconds"] for item in records))
        else:
            return None
    return Costs(totals, [factor * value for value in side.each[name]], paired)


def _with_error(estimate: Estimate) -> str:
    error = f" ± {math.sqrt(estimate.variance):.1g}" if estimate.freedom else ""
    return f"{estimate.mean:.3g}{error}"


def _inferences(count: str) -> str:
    return f"{count} inference" if count == "1" else f"{count} inferences"


def _count(value: float) -> str:
    """A number of inferences, rounded to three significant digits."""
    if value < 1000:
        return f"{value:.0f}"
    digits = 3 - len(f"{value:.0f}")
    return f"{round(value, digits):,.0f}"
