"""Unfinished runs of the same settings, for whoever types the same command again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from lthfunc.errors import UserError
from lthfunc.experiments.config import FREE, SETTINGS, Config, to_mapping, trainings_of
from lthfunc.runs import safe_files
from lthfunc.runs.folder import METRICS, Run, scan_run
from lthfunc.runs.lock import is_held

#: Where runs lie that were given no folder.
RUNS = Path("runs")
#: Runs that are looked at, the newest; the rest is history.
_MOST = 20


def unfinished_like(config: Config, command: str, out: str | None) -> Path | None:
    """The newest unfinished run of these settings that nobody is working on: in `out`, or among the runs here."""
    if out is not None:
        folders = [Path(out)]
    else:
        ages = {RUNS / name: _age(RUNS / name) for name in safe_files.names(RUNS, RUNS)}
        folders = sorted(filter(ages.get, ages), key=lambda folder: ages[folder], reverse=True)[:_MOST]
    for folder in folders:
        try:
            run = scan_run(folder)
            mine = run.about.get("command") == command and not is_finished(run) and _alike(run, config)
            if mine and not is_held(folder):
                return folder
        except (UserError, OSError):
            continue
    return None


def is_finished(run: Run) -> bool:
    """Whether all its trainings are."""
    return len(run.records) >= trainings_of(run.config)


def _age(folder: Path) -> float:
    """When a run's last training ended; 0 for a folder that is none, or not to be read."""
    with suppress(OSError):
        about = safe_files.status(folder, folder / METRICS)
        return 0.0 if about is None else about.st_mtime
    return 0.0


def _alike(run: Run, config: Config) -> bool:
    """Whether these settings, resolved, are the run's; what was left open was decided by the run."""
    theirs, mine = to_mapping(run.config), to_mapping(config)
    opened = [name for name, each in SETTINGS.items() if each.decided and mine.get(name) in (None, "auto")]
    return all(mine.get(name) == theirs.get(name) for name in {**mine, **theirs} if name not in (*FREE, *opened))
