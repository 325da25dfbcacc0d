"""Runs, from settings to pictures: the imperative shell around experiments."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import typer

from lthfunc.catalog.methods import method_entry
from lthfunc.errors import invalid
from lthfunc.experiments.config import SETTINGS, Config, first_round, replaced_by, to_mapping
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.plan import PreparedPlan
from lthfunc.experiments.records import Record
from lthfunc.experiments.resolve import resolved, without_method
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.trust import check_trust
from lthfunc.plugins import is_own
from lthfunc.runs.branching import branch, check_branch, transfers
from lthfunc.runs.environment import environment
from lthfunc.runs.folder import (
    ENVIRONMENT,
    METRICS,
    PRUNE,
    TRANSFER,
    Run,
    check_free,
    create,
    read_run,
    scan_run,
    version_of,
    whole_run,
    write_config,
)
from lthfunc.runs.json_lines import append_lines
from lthfunc.runs.lock import locked
from lthfunc.runs.recovery import recover
from lthfunc.runs.safe_files import status
from lthfunc.runs.start_folder import check_started_here
from lthfunc.runs.unfinished import RUNS, unfinished_like
from lthfunc.trees.atomic_io import safe_file_name

from .console import put_json, say
from .options import Given, Shown
from .results import as_json, show_results
from .training import prepare_run, train_run

T = TypeVar("T")


def new_run(config: Config, command: str, out: str | None, *, shown: Shown) -> None:
    """Check everything, make the folder, and run. Raises UserError before anything is written.

    If there is an unfinished run with the same settings, offer to resume it.
    """
    earlier = unfinished_like(config, command, out)
    if earlier is not None and _confirms_resuming(earlier, out):
        resume_run(str(earlier), {}, trust=False, shown=shown, typed=config)
        return
    folder = _free_folder(config, out)
    prepared = prepare_run(config)
    with _new_folder(folder, lambda: create(folder, prepared.config, command, data=prepared.plan.trainer.data)):
        _run(prepared, command, folder, [], shown)


def resume_run(run: str, changed: Given, trust: bool, *, shown: Shown, typed: Config | None = None) -> None:
    """Resume an interrupted run; for a finished one, make its table and pictures again.

    changed: settings that change no result, to be used instead of the run's. typed: what the user has typed, which
    needs no trust where the run has the same.
    """
    folder = Path(run)
    with _locked_run(folder, changed, trust, typed) as found:
        _check_seeds(found, changed)
        prepared = prepare_run(found.continued(changed))
        config, about = prepared.config, found.about
        if changed:
            write_config(folder, replace(found.config, **changed), about)
        append_lines(folder / ENVIRONMENT, [environment("resume", config.device, config.threads)])
        tasks = None
        if "source" in about:
            source = Path(about["source"])
            tasks = transfers(source, whole_run(source).records, prepared.plan, config)
        _run(prepared, about["command"], folder, found.records, shown, tasks)


def _check_seeds(run: Run, changed: Given) -> None:
    """Raise UserError if seeds are to be taken away, or added to a run that continues another one."""
    count, before = changed.get("replicates"), run.config.replicates
    if count is not None and count < before:
        raise invalid("--replicates", count, f"at least {before}, the seeds that the run has")
    if count not in (None, before) and ("source" in run.about or run.about.get("branched") is not None):
        raise invalid("--replicates", count, f"{before}, as the run continues another one's trainings")


def trial_run(config: Config, folder: Path, again: str) -> None:
    """Run a trial, resuming it if its folder exists. again: the command that resumes it."""
    if status(folder, folder / METRICS) is None:
        check_free(folder)
        prepared = prepare_run(config)
        with _new_folder(folder, lambda: create(folder, prepared.config, PRUNE, data=prepared.plan.trainer.data)):
            train_run(prepared, PRUNE, folder, [], again=again)
        return
    with _locked_run(folder, {}, False, config) as found:
        train_run(prepare_run(found.continued()), PRUNE, folder, found.records, again=again)


def branch_run(run: Path, number: int, given: Given, out: str | None, trust: bool, *, shown: Shown) -> None:
    """Continue from a round of a finished run with other settings, in a new folder."""
    found = whole_run(run)
    # The run's rate stays, unless a rate or another number of rounds replaces its densities.
    by_name: dict[str, Any] = {"densities": None} if "rate" in given or "rounds" in given else {}
    parts = method_entry(found.config.method).settings
    if not first_round(found.config) and not parts.keys().isdisjoint(given):  # it is another method from here on
        by_name |= {"method": "imp"}
    config = _changed(found.config, {"density": None, **by_name}, given)
    check_started_here(config, run)
    check_trust(to_mapping(config), run, trusted=trust, typed=given)
    folder = _free_folder(config, out)
    prepared = prepare_run(config, lambda prepared: check_branch(run, found, prepared.plan, number))
    with _new_folder(folder, lambda: branch(run, found.records, folder, number, prepared)) as early:
        _run(prepared, PRUNE, folder, early, shown)


def transfer_run(run: Path, given: Given, out: str | None, trust: bool, *, shown: Shown) -> None:
    """Train the tickets of a finished run on another data set, in a new folder."""
    _, theirs, records = read_run(run)
    fresh = {name: None for name, setting in SETTINGS.items() if setting.follows_data}
    pruned = {
        "rounds": max((item["round"] for item in records), default=0),
        "rewind": "init",
        "control": None,
        "from_trained": None,
    }
    task = {name: None for name in ("loss", "metric") if not is_own(getattr(theirs, name))}
    config = _changed(theirs, {**fresh, **without_method(theirs), **pruned, **task}, given)
    check_started_here(config, run)
    check_trust(to_mapping(config), run, trusted=trust, typed=given)
    folder = _free_folder(config, out)
    prepared = prepare_run(config)
    tasks = transfers(run, records, prepared.plan, prepared.config)
    data = prepared.plan.trainer.data
    with _new_folder(folder, lambda: create(folder, prepared.config, TRANSFER, run, data=data)):
        _run(prepared, TRANSFER, folder, [], shown, tasks)


@contextmanager
def _locked_run(folder: Path, changed: Given, trust: bool, typed: Config | None) -> Iterator[Run]:
    """Read a run, check that its settings are trusted, lock it, and recover it; what was damaged is reported.

    Nothing is written to a run that is not trusted, not even a lock.
    """

    def trusted() -> Run:
        found = scan_run(folder)
        check_started_here(found.config, folder)
        same = set() if typed is None else _same(typed, found.config)
        check_trust(to_mapping(found.config), folder, trusted=trust, typed={*changed, *same})
        return found

    version = version_of(folder)
    found = trusted()
    with locked(folder):
        if version_of(folder) != version:  # another process has worked on it in the meantime
            found = trusted()
        found, said = recover(folder, found)
        for line in said:
            say(f"damaged: {line}")
        yield found


def _same(mine: Config, theirs: Config) -> set[str]:
    """The settings that have the same values in both."""
    values, others = to_mapping(mine), to_mapping(theirs)
    return {name for name, value in others.items() if values.get(name) == value}


@contextmanager
def _new_folder(folder: Path, begin: Callable[[], T]) -> Iterator[T]:
    """Make the folder, lock it, and begin a run in it; one that cannot begin is removed."""
    make_folder("--out", folder)
    with locked(folder):
        check_free(folder)  # another process may have started there in the meantime
        try:
            begun = begin()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        yield begun


def _confirms_resuming(earlier: Path, out: str | None) -> bool:
    """Whether the user wants to resume an unfinished run; if nobody can be asked, print how to."""
    if sys.stdin.isatty() and sys.stderr.isatty():
        return typer.confirm(f"{earlier} is an unfinished run with these settings. Resume it?", err=True, default=True)
    if out is None:
        say(f"found an unfinished run with these settings; resume it with: lthfunc resume {shlex.quote(str(earlier))}")
    return False


def _changed(config: Config, first: dict[str, Any], given: Given) -> Config:
    """A run's settings with some replaced or (None) reset to defaults, then with those that were typed."""
    replaced = dict.fromkeys(replaced_by(given))
    return resolved(from_mapping({**to_mapping(config), **first, **replaced, **given}))


def _run(
    prepared: PreparedPlan,
    command: str,
    folder: Path,
    earlier: list[Record],
    shown: Shown,
    tasks: list[Task] | None = None,
) -> None:
    records = train_run(prepared, command, folder, earlier, tasks)
    from lthfunc.reports.run_pictures import draw  # matplotlib takes half a second, which would delay training

    draw(folder, records, f"{prepared.config.arch} on {prepared.config.dataset}")
    run = scan_run(folder)
    if shown.json:
        put_json(as_json(run, folder))
    else:
        show_results(run, folder, layers=shown.layers)


def _free_folder(config: Config, out: str | None) -> Path:
    """The folder that was named, or one after the network, the data set and the time, where a run can be written."""
    # For a user's network, module:function, the function's name; for a path, its last part.
    arch, dataset = (safe_file_name(Path(name.rpartition(":")[2]).name) for name in (config.arch, config.dataset))
    base = RUNS / f"{arch}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = Path(out) if out else base, 2
    while not out and folder.exists():  # two runs in one second
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    check_free(folder)
    return folder


def make_folder(option: str, folder: Path) -> None:
    """Make a folder for results that are written one by one. Raises UserError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise invalid(option, str(folder), f"a folder that can be made ({error.strerror})") from error
