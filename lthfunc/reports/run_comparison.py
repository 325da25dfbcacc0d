"""Runs compared: what they reach in a chosen round, and whether that differs from a baseline."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.table import Table

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import SETTINGS, Config, to_mapping
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.metrics import MetricScale, in_one_unit
from lthfunc.experiments.records import Record, Row, Spread, spread, summarize
from lthfunc.reports.tables import accuracy_cells, accuracy_heads, in_short, plain_table

#: Points by name; else a density.
POINTS = ("winning", "last", "dense")


class ComparedRun(NamedTuple):
    """A run to compare. won: the round of its winning ticket; None if no round won."""

    name: str
    config: Config
    records: Sequence[Record]
    won: int | None


class Paired(NamedTuple):
    """Differences to the baseline over the seeds that both have.

    interval: of 95 % around the mean; p: of Student's paired t-test. None with fewer than two seeds, or where all
    differences are the same, which no such test can judge.
    """

    seeds: int
    difference: Spread
    interval: tuple[float, float] | None
    p: float | None


class ComparisonRow(NamedTuple):
    """A run at its point. settings: those that differ between the runs. row: the ticket's in the chosen round.

    search_seconds: of a seed's trainings up to there, controls left out. paired: None for the baseline itself, and
    without a shared seed.
    """

    name: str
    settings: dict[str, Any]
    row: Row
    search_seconds: float
    paired: Paired | None


def compared(subjects: Sequence[ComparedRun], at: str, baseline: int) -> list[ComparisonRow]:
    """Each run at a point: its winning ticket (or else the last round), its last, its dense network, or the round

    whose density is nearest to a number. baseline: which of the runs the others are compared with.

    Raises UserError where a run has no finished training, or the point is none.
    """
    settings = [to_mapping(subject.config) for subject in subjects]
    different = differing(settings)
    rows = [_row(subject, at) for subject in subjects]
    rows = [row._replace(scale=scale) for row, scale in zip(rows, in_one_unit(row.scale for row in rows), strict=True)]
    reference = _by_seed(subjects[baseline].records, rows[baseline].round)
    return [
        ComparisonRow(
            subject.name, {name: settings[number].get(name) for name in different}, row,
            _search_seconds(subject.records, row.round),
            None if number == baseline else paired(_by_seed(subject.records, row.round), reference),
        )
        for number, (subject, row) in enumerate(zip(subjects, rows, strict=True))
    ]  # fmt: skip


def comparison_warnings(subjects: Sequence[ComparedRun], rows: Sequence[ComparisonRow]) -> list[str]:
    """Lines on differences that mean nothing or are not tested: of other data sets or metrics, or of one seed."""
    found = []
    for what, values in (
        ("data sets", [each.config.dataset for each in subjects]),
        ("metrics", [each.row.measured for each in rows]),
    ):
        if len(set(values)) > 1:
            named = ", ".join(dict.fromkeys(values))
            found.append(f"these runs have different {what} ({named}), so their differences do not compare networks")
    tests = [each.paired for each in rows if each.paired is not None]
    if any(test.seeds < 2 for test in tests) or (not tests and len(rows) > 1):
        found.append("p needs two seeds that a run shares with the baseline: train with --replicates 2 or more")
    return found


def paired(mine: dict[int, float], theirs: dict[int, float]) -> Paired | None:
    """Student's paired t-test (scipy.stats.ttest_rel) over the seeds in both; None where they share none."""
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    differences = [mine[seed] - theirs[seed] for seed in seeds]
    found = spread(differences)
    if len(seeds) < 2 or found.std == 0:
        return Paired(len(seeds), found, None, None)
    from scipy import stats  # half a second, which other commands need not wait for

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are nearly the same
        result = stats.ttest_rel([mine[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    reach = float(stats.t.ppf(0.975, len(seeds) - 1)) * found.std / math.sqrt(len(seeds))
    return Paired(len(seeds), found, (found.mean - reach, found.mean + reach), float(result.pvalue))


def comparison_table(rows: Sequence[ComparisonRow], baseline: str) -> Table:
    """For a terminal."""
    head, body = _cells(rows)
    title = f"differences to {baseline}: means over shared seeds, [95 % interval], p of a paired t-test"
    table = plain_table(*head, title=title)
    for row, cells in zip(rows, body, strict=True):
        table.add_row(*cells, style="bold" if row.paired is None and row.name == baseline else None)
    return table


def as_markdown(rows: Sequence[ComparisonRow]) -> str:
    """A table that papers and issues take."""
    head, body = _cells(rows)
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_csv(rows: Sequence[ComparisonRow]) -> str:
    """Plain numbers, shares in [0, 1]. A setting with the name of one of them, such as density, is setting_density."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    numbers = _flat(rows[0])
    settings = [f"setting_{name}" if name in numbers else name for name in rows[0].settings]
    writer.writerow(["run", *settings, *numbers])
    writer.writerows([each.name, *map(_word, each.settings.values()), *_flat(each).values()] for each in rows)
    return file.getvalue()


def as_values(rows: Sequence[ComparisonRow]) -> list[dict[str, Any]]:
    """For machines: shares in [0, 1]."""
    return [{"run": row.name, "settings": row.settings, **_flat(row)} for row in rows]


def _flat(each: ComparisonRow) -> dict[str, Any]:
    row, test = each.row, each.paired
    low, high = (None, None) if test is None or test.interval is None else test.interval
    return {
        "round": row.round, "density": row.density, "replicates": row.replicates, "metric": row.measured,
        "val_accuracy": row.val_accuracy.mean, "val_accuracy_std": row.val_accuracy.std,
        "test_accuracy": row.test_accuracy.mean, "test_accuracy_std": row.test_accuracy.std,
        "early_stop_step": row.early_stop_step.mean, "early_stop_step_std": row.early_stop_step.std,
        "search_seconds": each.search_seconds,
        "shared_seeds": None if test is None else test.seeds,
        "difference": None if test is None else test.difference.mean,
        "difference_std": None if test is None else test.difference.std,
        "difference_low": low, "difference_high": high, "p": None if test is None else test.p,
    }  # fmt: skip


def _cells(rows: Sequence[ComparisonRow]) -> tuple[list[str], list[list[str]]]:
    scales = {each.row.scale for each in rows}
    common = in_short(scales.pop()) if len(scales) == 1 else MetricScale("metric", unit="")
    difference_head = f"difference {common.unit}".rstrip()
    head = ["run", *rows[0].settings, "round", *accuracy_heads(common), "search s", "seeds", difference_head, "p"]
    body = []
    for each in rows:
        row, test = each.row, each.paired
        difference = "" if test is None else row.scale.number(test.difference.mean, signed=True)
        if test is not None and test.interval is not None:
            low, high = (row.scale.number(end, signed=True) for end in test.interval)
            difference += f" [{low}, {high}]"
        body.append(
            [
                each.name, *map(_word, each.settings.values()), str(row.round), *accuracy_cells(row),
                f"{each.search_seconds:.1f}", str(row.replicates), difference,
                "" if test is None or test.p is None else f"{test.p:.3f}" if test.p >= 0.001 else "< 0.001",
            ]
        )  # fmt: skip
    return head, body


def _row(subject: ComparedRun, at: str) -> Row:
    tickets = [row for row in summarize(subject.records) if row.variant == TICKET]
    if not tickets:
        raise UserError(f"{subject.name}: has no finished training yet")
    if at == "dense":
        return tickets[0]
    if at == "last":
        return tickets[-1]
    if at == "winning":
        return next((row for row in tickets if row.round == subject.won), tickets[-1])
    try:
        wanted = float(at)
    except ValueError:
        wanted = math.nan
    if not 0 < wanted <= 1:
        raise invalid("--at", at, f"{', '.join(POINTS)}, or a density in (0, 1]")
    return min(tickets, key=lambda row: abs(math.log(row.density / wanted)) if row.density else math.inf)


def _by_seed(records: Sequence[Record], number: int) -> dict[int, float]:
    return {
        item["seed"]: item["test_accuracy"] for item in records if (item["round"], item["variant"]) == (number, TICKET)
    }


def _search_seconds(records: Sequence[Record], number: int) -> float:
    """Of the trainings that led to a round's ticket, and its own: the mean over seeds that have it."""
    seeds = _by_seed(records, number)
    mine = [item for item in records if item["variant"] == TICKET and item["round"] <= number and item["seed"] in seeds]
    seconds: list[float] = [item["seconds"] for item in mine]
    return sum(seconds) / len(seeds)


def differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Names of settings that differ between runs. settings: of each run."""
    names = dict.fromkeys(name for each in settings for name in each if SETTINGS[name].is_difference)
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
