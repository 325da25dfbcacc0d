"""Recovery after an interruption or damage: a run continues from its last good point, and what was lost is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lthfunc.errors import DamagedError, UserError
from lthfunc.experiments.config import first_round
from lthfunc.experiments.iterative import TICKET
from lthfunc.experiments.records import Record
from lthfunc.runs import safe_files
from lthfunc.runs.branching import copy_early
from lthfunc.runs.checkpoints import drop_checkpoints
from lthfunc.runs.folder import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    TRANSFER,
    Name,
    Run,
    in_order,
    record_key,
    training_folder,
    whole_run,
    write_config,
)
from lthfunc.runs.integrity import Problem, checkpoint_problems, wrong
from lthfunc.runs.json_lines import append_lines, drop_partial_line, line_of, whole_lines
from lthfunc.runs.measurements import MEASURED
from lthfunc.runs.ticket_files import has_ticket_files
from lthfunc.trees.atomic_io import TEMPORARY_SUFFIX

#: The keys of what tells a training from the others.
_NAME = ("seed", "round", "variant")


def recover(folder: Path, run: Run) -> tuple[Run, list[str]]:
    """Make a run ready to continue; returns what remains of it, and lines on the problems. run: as it was just read.

    Damaged trainings, and those of their seed that follow from them, no longer count as finished; their files are
    written again. Nothing else is deleted, except what interrupted writes left.

    Raises DamagedError if its settings were changed.
    """
    for path in list(safe_files.files(folder)):
        if path.name.startswith(".") and path.name.endswith(TEMPORARY_SUFFIX):
            safe_files.remove(folder, path)
    drop_partial_line(folder / METRICS)
    said = run.damage
    if safe_files.status(folder, folder / CONFIG) is None:
        write_config(folder, run.config, run.about)
    elif run.settings is not None:
        raise DamagedError(f"{folder / CONFIG}: {run.settings}")
    said += _without_damaged_lines(folder)
    problems = wrong(folder, run)
    unwritten = not has_ticket_files(folder, run)  # of which nothing was lost; they are written at the end as ever
    said += [str(each) for each in problems if not (unwritten and each.is_ticket)]
    said += map(str, checkpoint_problems(folder))
    lost = _lost(run, problems)
    if run.about.get("branched") is not None and (early := _early_missing(run, lost)):
        run = _with_early(folder, run, lost, early)
        lost = _lost(run, wrong(folder, run))
    if run.damaged:
        append_lines(folder / METRICS, [{"kind": "mended", "lines": list(run.damaged)}])
    if lost:
        dropped = (
            {"kind": "dropped", **dict(zip(_NAME, name, strict=True)), "reason": why} for name, why in lost.items()
        )
        append_lines(folder / METRICS, dropped)
    left = [item for item in run.records if record_key(item) not in lost]
    for item in left:  # a crash may have come between a training's line and this
        drop_checkpoints(training_folder(folder, *record_key(item)))
    return run._replace(records=left, damaged={}, settings=None), said


def _without_damaged_lines(folder: Path) -> list[str]:
    """Drop damaged lines of environment.jsonl and measured.jsonl, on which nothing else depends."""
    said = []
    for path in (folder / ENVIRONMENT, folder / MEASURED):
        lines, damaged = whole_lines(path)
        said += damaged
        if damaged:  # it may not be a regular file
            safe_files.write(folder, path, "".join(line_of(each) + "\n" for each in lines).encode())
        elif safe_files.exists(folder, path):
            drop_partial_line(path)
    return said


def _early_missing(run: Run, lost: Mapping[Name, str]) -> list[str]:
    """What is lost of the rounds that a branch has copied from another run, in words."""
    config, number = run.config, run.about["branched"]["round"]
    seeds = range(config.seed, config.seed + config.replicates)
    first = {(seed, before, TICKET) for seed in seeds for before in range(first_round(config), number + 1)}
    if run.damaged:  # an unreadable line may have been a control's
        first |= {(seed, before, each) for seed, before, _ in first if before for each in config.control}
    there = {record_key(item) for item in run.records} - lost.keys()
    missing = (first - there) | {name for name in lost if name[1] <= number}
    return sorted({f"round {name[1]} of seed {name[0]}" for name in missing})


def _with_early(folder: Path, run: Run, lost: Mapping[Name, str], missing: Sequence[str]) -> Run:
    """Copy what is lost of a branch's first rounds again, since they were trained with another run's settings.

    Raises DamagedError if that run no longer has them.
    """
    source, number = Path(run.about["branched"]["run"]), run.about["branched"]["round"]
    there = {record_key(item) for item in run.records} - {name for name in lost if name[1] <= number}
    try:
        early = copy_early(source, whole_run(source).records, number, folder, run.config, there)
    except (UserError, OSError) as error:
        named = ", ".join(missing)
        raise DamagedError(f"{folder}: {named} cannot be copied from {source} again: {error}") from error
    records = {record_key(item): item for item in (*run.records, *early)}
    return run._replace(records=in_order(list(records.values()), run.config.control))


def _lost(run: Run, problems: Sequence[Problem]) -> dict[Name, str]:
    """Trainings that must be repeated, with the reasons."""
    lost = {each.name: str(each) for each in problems if each.name is not None}
    if run.about["command"] == TRANSFER:  # its trainings don't follow from each other
        return lost
    for item in run.records:
        reason = _follows(run, item, lost)
        if reason is not None:
            lost.setdefault(record_key(item), reason)
    return lost


def _follows(run: Run, item: Record, lost: dict[Name, str]) -> str | None:
    """Why a training must be repeated because of others: what it was made from is lost, or was never finished."""
    seed, number, variant = record_key(item)
    needed = number + (variant != TICKET)  # a control has the masks of its round's ticket
    for other in lost:
        if other[0] == seed and (other[1] < number or (other[1] < needed and other[2] == TICKET)):
            return f"it follows from round {other[1]}, which is damaged"
    tickets = {each["round"] for each in run.records if (each["seed"], each["variant"]) == (seed, TICKET)}
    missing = sorted(set(range(first_round(run.config), needed)) - tickets)
    return f"it follows from round {missing[0]}, which is missing" if missing else None
