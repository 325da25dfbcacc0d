"""Unfinished runs with the same settings, for users who type the same command again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lthfunc.errors import UserError
from lthfunc.experiments.config import FREE, SETTINGS, Config, to_mapping, trainings_of
from lthfunc.runs import safe_files
from lthfunc.runs.folder import METRICS, Run, scan_run
from lthfunc.runs.lock import is_held

#: The folder of runs without --out.
RUNS = Path("runs")
#: How many of the newest runs are considered.
_MOST = 20


def unfinished_like(config: Config, command: str, out: str | None) -> Path | None:
    """The newest unfinished run with these settings that no process is working on: `out`, or one of the runs here."""
    for folder in _newest() if out is None else [Path(out)]:
        try:
            run = scan_run(folder)
            mine = (
                run.about.get("command") == command and not is_finished(run) and not settings_that_differ(run, config)
            )
            if mine and not is_held(folder):
                return folder
        except (UserError, OSError):
            continue
    return None


def runs_here(*, unfinished: bool, most: int = 5) -> list[Path]:
    """The newest runs in the folder of runs. unfinished: only those that are, and that no process is working on."""
    found: list[Path] = []
    for folder in _newest():
        with suppress(UserError, OSError):
            if not unfinished or not (is_finished(scan_run(folder)) or is_held(folder)):
                found.append(folder)
    return found[:most]


def _newest() -> list[Path]:
    ages = {RUNS / name: _age(RUNS / name) for name in safe_files.names(RUNS, RUNS)}
    return sorted(filter(ages.get, ages), key=lambda folder: ages[folder], reverse=True)[:_MOST]


def is_finished(run: Run) -> bool:
    """Whether all trainings of a run are finished."""
    return len(run.records) >= trainings_of(run.config)


def _age(folder: Path) -> float:
    """When a run's last training ended; 0 for a folder that is not a run or can't be read."""
    with suppress(OSError):
        about = safe_files.status(folder, folder / METRICS)
        return 0.0 if about is None else about.st_mtime
    return 0.0


def settings_that_differ(run: Run, config: Config) -> list[str]:
    """The settings, resolved, in which a run differs; those left open are taken from the run."""
    theirs, mine = to_mapping(run.config), to_mapping(config)
    opened = [name for name, each in SETTINGS.items() if each.decided and mine.get(name) in (None, "auto")]
    return [name for name in {**mine, **theirs} if name not in (*FREE, *opened) and mine.get(name) != theirs.get(name)]
