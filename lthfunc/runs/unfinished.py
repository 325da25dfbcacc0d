"""Unfinished runs of the same settings, for whoever types the same command again."""

from __future__ import annotations

from pathlib import Path

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.resolve import resolved
from lthfunc.runs.folder import FREE, METRICS, Run, scan_run
from lthfunc.runs.lock import is_held

#: Where runs lie that were given no folder.
RUNS = Path("runs")
#: Runs that are looked at, the newest; the rest is history.
_MOST = 20
#: Settings that a run decides by itself where they are left open.
_OPEN = ("device", "engine", "threads", "jobs", "loss", "metric")


def unfinished_like(config: Config, command: str, out: str | None) -> Path | None:
    """The newest unfinished run of these settings that nobody is working on: in `out`, or among the runs here."""
    if out is not None:
        folders = [Path(out)]
    else:
        folders = [path.parent for path in RUNS.glob(f"*/{METRICS}")]
        folders = sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True)[:_MOST]
    for folder in folders:
        try:
            run = scan_run(folder)
        except (UserError, OSError):
            continue
        if run.about.get("command") == command and not is_finished(run) and _alike(run, config) and not is_held(folder):
            return folder
    return None


def trainings_of(config: Config) -> int:
    """How many trainings a run has when it is finished."""
    return config.replicates * (1 + config.rounds * (1 + len(config.control)))


def is_finished(run: Run) -> bool:
    """Whether all its trainings are."""
    return len(run.records) >= trainings_of(run.config)


def _alike(run: Run, config: Config) -> bool:
    """Whether the settings are the run's; what was left open was decided by the run."""
    theirs, mine = to_mapping(run.config), to_mapping(resolved(config))
    opened = [name for name in _OPEN if mine.get(name) in (None, "auto")]
    return all(mine.get(name) == theirs.get(name) for name in {**mine, **theirs} if name not in (*FREE, *opened))
