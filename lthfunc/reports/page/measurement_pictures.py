"""Pictures of measurements: energy of trainings, speed and energy of inference, connectivity."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from lthfunc.energy.amounts import PHASES
from lthfunc.errors import UserError
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record, summarize
from lthfunc.reports.breakeven import break_evens, breakeven_chart, run_costs
from lthfunc.reports.charts import Bars, Chart, Picture, Series, ordered
from lthfunc.reports.connectivity import barrier_charts
from lthfunc.reports.curves import energy_chart
from lthfunc.reports.program_tables import size
from lthfunc.reports.spacing import spread_out
from lthfunc.runs.measurements import timings_of

_PARTS = ("cpu", "gpu", "ram")


def energy_pictures(records: Sequence[Record]) -> list[Picture]:
    """Energy of trainings over density, by component and by epoch; empty where it was not metered."""
    metered = [item for item in records if "energy" in item]
    if not metered:
        return []
    source = metered[0]["energy"]["source"]
    tickets = [item for item in metered if item["variant"] == TICKET]
    rows = summarize(tickets)
    of_rows = [[item["energy"] for item in tickets if item["round"] == row.round] for row in rows]
    groups = [
        (part.upper(), [1000 * statistics.fmean(sum(each[phase][part] for phase in PHASES) for each in found)
                        for found in of_rows], None)
        for part in _PARTS
    ]  # fmt: skip
    epochs = [
        Series(
            f"{100 * row.density:.3g} %", range(1, 1 + len(means)), means, None, *ordered(place, len(rows)),
            marker=None, listed=row in spread_out(rows),
        )
        for place, (row, found) in enumerate(zip(rows, of_rows, strict=True))
        for means in [_by_epoch(found)]
    ]  # fmt: skip
    chart = energy_chart({"": metered})
    return [
        chart._replace(caption=f"{chart.caption} Without evaluation. {source}.".lstrip()),
        Bars(
            "energy_by_part", "Energy by component", "Wh per training, including evaluation",
            [f"round {row.round}: {100 * row.density:.3g} %" for row in rows],
            [group for group in groups if any(group[1])], stacked=True,
            caption=f"{source}.",
        ),
        Chart(
            "energy_by_epoch", "Energy of each epoch", "epoch", "Wh per epoch", epochs, zero=True,
            caption=f"A line per round, by remaining weights; training steps only. {source}.",
        ),
    ]  # fmt: skip


def _by_epoch(metered: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean energy of the steps of each epoch [Wh], over trainings of the same length."""
    columns = zip(*([epoch[1] for epoch in each["epochs"]] for each in metered), strict=False)
    return [1000 * statistics.fmean(column) for column in columns]


def measured_pictures(name: str, records: Sequence[Record], measured: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """The latest measurement of each kind, and the break-even from it. name: the run's."""
    latest = {item["kind"]: item for item in measured}
    pictures: list[Picture] = []
    if "execution" in latest:
        pictures += [*_speed(measured), _weight_size(latest["execution"])]
    if "energy" in latest:
        pictures += _inference_energy(latest["energy"])
    pictures += _breakeven(name, records, measured)
    if "connectivity" in latest:
        pictures += barrier_charts(latest["connectivity"]["results"])
    return pictures


def _speed(measured: Sequence[Mapping[str, Any]]) -> list[Picture]:
    """Times of the programs of the round that was timed last, for each size of batch."""
    timed = [(item, found) for item in measured if item["kind"] == "execution" and (found := timings_of(item))]
    if not timed:
        return []
    about = timed[-1][0]
    same = [pair for pair in timed if all(pair[0][key] == about[key] for key in ("round", "machine"))]
    by_batch = {found.batch: (item, found) for item, found in same}
    latest = {batch: by_batch[batch] for batch in sorted(by_batch)}
    names = [name for name in timed[-1][1].turns if all(name in found.turns for _, found in latest.values())]
    names.sort(key=lambda name: timed[-1][1].seconds[name])
    groups = [
        (f"batches of {batch}", [1e6 * found.seconds[name] / batch for name in names], None)
        for batch, (_, found) in latest.items()
    ]
    told = [
        f"{times:.1f} (batches of {batch})"
        for batch, (item, found) in latest.items()
        if (program := item.get("program") or item["form"]) in found.turns and (times := found.speedup(program))
    ]
    where = about["machine"]["gpu"] or about["machine"]["processor"]
    words = f": the chosen program is {', '.join(told)} times as fast as the dense network" if told else ""
    caption = f"Medians of turns, round {about['round']} on {where}{words}."
    return [Bars("execution", "Speed of the ticket's programs", "µs per example", names, groups, caption=caption)]


def _weight_size(item: Mapping[str, Any]) -> Picture:
    dense, program = item["bytes"]["dense"], item["bytes"]["program"]
    return Bars(
        "size", "Size of the weights", "kB", ["dense, float32", f"as {item['form']}"],
        [("", [dense / 1000, program / 1000], None)],
        caption=f"Round {item['round']}: {size(dense)} dense, {size(program)} as the program holds them; "
        f"compression ratio {item['compression_ratio']:.1f}, theoretical speed-up "
        f"{item['theoretical_speedup']:.1f}.",
    )  # fmt: skip


def _inference_energy(item: Mapping[str, Any]) -> list[Picture]:
    formats: dict[str, Any] = item["formats"]
    means = [1e9 * each["kwh"]["mean"] for each in formats.values()]
    deviations = [1e9 * each["kwh"]["std"] for each in formats.values()]
    return [
        Bars(
            "inference_energy", "Energy of inference", "Wh per million examples", list(formats),
            [("", means, deviations)],
            caption=f"Round {item['round']}, batches of {item['batch_size']}, {item['samples']:,} examples in "
            f"{item['repeats']} repeats; {item['source']}.",
        )
    ]  # fmt: skip


def _breakeven(name: str, records: Sequence[Record], measured: Sequence[Mapping[str, Any]]) -> list[Picture]:
    try:
        sparse = run_costs(name, records, measured, dense=False, format="specialised")
        dense = run_costs(name, records, measured, dense=True, format="dense")
    except UserError:  # trainings that are not finished
        return []
    found = break_evens(sparse, dense, same=True, price=None, evaluation=False)
    return [breakeven_chart(each) for each in found if each.quantity in ("emissions", "time")]
