"""Moments of kills, what became of the runs, and how they differ from an undisturbed one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NamedTuple

from lthfunc.runs.folder import read_run

PHASES = ("beginning", "training", "pruning", "saving", "reporting")
EVENTS = ("half a file written", "before fsync", "before rename", "after rename", "half a line written")


class Moment(NamedTuple):
    """When to kill. seconds: after the start, or after what follows; event: the number of it.

    phase: which; progress: how often the run's trainings have told theirs.
    """

    how: str
    seconds: float = 0.0
    progress: int = 0
    phase: int | None = None
    event: int | None = None


class Outcome(NamedTuple):
    """A kill, in words: phase or event it hit, and what became of the run."""

    how: str
    where: str
    same: bool
    clean: bool
    problem: str = ""


def is_bad(outcome: Outcome) -> bool:
    """Whether the run ended otherwise than the undisturbed one, or with something to find fault with."""
    return not (outcome.same and outcome.clean)


def difference(run: Path, reference: Path) -> str:
    """How a run differs from the undisturbed one; nothing where it has the same bits but for times."""
    for pattern in ("*.safetensors", "manifest.json", "config.toml"):
        names = sorted(str(path.relative_to(run)) for path in run.rglob(pattern))
        theirs = sorted(str(path.relative_to(reference)) for path in reference.rglob(pattern))
        if names != theirs:
            return f"files {sorted(set(names) ^ set(theirs))}"
        for name in names:
            if (run / name).read_bytes() != (reference / name).read_bytes():
                return name
    ours, others = (
        [{key: value for key, value in item.items() if key != "seconds"} for item in read_run(folder)[2]]
        for folder in (run, reference)
    )
    left = [str(path) for path in run.rglob("*.unfinished")]
    return "records" if repr(ours) != repr(others) else " ".join(left)


def table(outcomes: list[Outcome]) -> str:
    """Moments and what became of them, as Markdown."""
    rows: dict[tuple[str, str], list[Outcome]] = {}
    for each in outcomes:
        rows.setdefault((each.how, each.where), []).append(each)
    text = "| killed | where it was | kills | same bits at the end | verify clean |\n|---|---|---|---|---|\n"
    order = {name: number for number, name in enumerate([*PHASES, *EVENTS])}
    for (how, where), group in sorted(rows.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        same, clean = sum(each.same for each in group), sum(each.clean for each in group)
        text += f"| {how} | {where} | {len(group)} | {same} | {clean} |\n"
    same, clean = sum(each.same for each in outcomes), sum(each.clean for each in outcomes)
    return text + f"| all | | {len(outcomes)} | {same} | {clean} |\n"


def of_methods(found: dict[str, list[Outcome]]) -> str:
    """What became of each method's runs, as Markdown."""
    text = "| method | kills | same bits at the end | verify clean |\n|---|---|---|---|\n"
    whole = list(itertools.chain(*found.values()))
    for name, group in [*found.items(), ("all", whole)]:
        same, clean = sum(each.same for each in group), sum(each.clean for each in group)
        text += f"| {name} | {len(group)} | {same} | {clean} |\n"
    return text
