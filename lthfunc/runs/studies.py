"""The runs of a study in its folder: one of each name, begun or continued."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import FREE, Config, to_mapping
from lthfunc.experiments.records import Record
from lthfunc.experiments.trust import check_trust
from lthfunc.runs import safe_files
from lthfunc.runs.environment import environment
from lthfunc.runs.folder import ENVIRONMENT, METRICS, scan_run, write_config
from lthfunc.runs.json_lines import append_lines
from lthfunc.runs.lock import HOLDER, LOCK, is_unused
from lthfunc.runs.recovery import recover
from lthfunc.runs.unfinished import settings_that_differ
from lthfunc.trees.atomic_io import TEMPORARY_SUFFIX

#: Files of a study beside its runs: errors over densities, errors against costs, and a page of both.
PICTURE, COSTS, PAGE = "methods.png", "methods-costs.png", "methods.html"
#: What a study's folder may hold besides its runs.
_OWN = (PICTURE, COSTS, PAGE, LOCK, HOLDER)


def check_study_folder(folder: Path) -> None:
    """Raise UserError if a study can't be in a folder: one with a folder that is no run, or with files but no run."""
    found = safe_files.names(folder, folder)
    begun = any(safe_files.status(folder, folder / name / METRICS) is not None for name in found)
    for name in found:
        own = name in _OWN or name.endswith(TEMPORARY_SUFFIX) or (begun and _is_file(folder, folder / name))
        if not own and not _may_be_run(folder, folder / name):
            raise invalid("--out", str(folder), f"a new folder, or one of `lthfunc methods`; this one holds {name}")


def _is_file(folder: Path, place: Path) -> bool:
    about = safe_files.status(folder, place)
    return about is not None and stat.S_ISREG(about.st_mode)


def _may_be_run(folder: Path, place: Path) -> bool:
    """Whether a run has begun there, or can."""
    about = safe_files.status(folder, place)
    if about is None or not stat.S_ISDIR(about.st_mode):
        return False
    return safe_files.status(folder, place / METRICS) is not None or is_unused(place)


def settings_there(folder: Path, config: Config, new: Config) -> Config:
    """The settings of a study's run: those of the run in its folder, with more seeds if `config` has more, or `new`.

    Raises UserError if the folder holds a run with other settings.
    """
    if safe_files.status(folder, folder / METRICS) is None:
        return new
    found = scan_run(folder)
    mine, theirs = to_mapping(config), to_mapping(found.config)
    if different := [name for name in settings_that_differ(found, config) if name != "replicates"]:
        name = different[0]
        raise UserError(
            f"--out: {folder} is a run with other settings: {name} is {theirs.get(name)!r} there, but "
            f"{mine.get(name)!r} here; name another folder"
        )
    check_trust(theirs, folder, trusted=False, typed={name for name in theirs if theirs[name] == mine.get(name)})
    free = {name: getattr(config, name) for name in FREE}
    seeds = max(config.replicates, found.config.replicates)
    return replace(found.continued(), replicates=seeds, **free)


def continued_run(folder: Path, config: Config, begin: Callable[[], None]) -> tuple[list[Record], list[str]]:
    """(the finished trainings of a study's run, lines on what was damaged); begin: starts it if there is none."""
    if safe_files.status(folder, folder / METRICS) is None:
        begin()
        return [], []
    run, said = recover(folder, scan_run(folder))
    if config.replicates != run.config.replicates:
        write_config(folder, replace(run.config, replicates=config.replicates), run.about)
    append_lines(folder / ENVIRONMENT, [environment("resume", config.device, config.threads)])
    return run.records, said
