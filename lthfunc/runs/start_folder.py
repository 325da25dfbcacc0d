"""Files that a run's settings name relative to the folder in which it was started, for commands in other folders."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lthfunc.catalog.data_sets import FILE_KINDS, SUFFIX
from lthfunc.errors import UserError
from lthfunc.experiments.config import SETTINGS, Config
from lthfunc.runs.folder import ENVIRONMENT
from lthfunc.runs.json_lines import whole_lines
from lthfunc.runs.side_file_schemas import session_problem


def start_folder(run: Path) -> Path | None:
    """The folder in which a run was started, if it was recorded and is here."""
    lines, _ = whole_lines(run / ENVIRONMENT, session_problem)
    folder = lines[0].get("folder") if lines else None
    if not isinstance(folder, str) or folder.startswith(("//", "\\\\")):  # a share of another machine
        return None
    return Path(folder) if Path(folder).is_absolute() and Path(folder).is_dir() else None


def located(config: Config, run: Path) -> Config:
    """The settings of a run, in which files that are missing here have their paths in its start folder."""
    missing = {name: path for name, path in _files(config) if not Path(path).is_absolute() and not Path(path).exists()}
    folder = start_folder(run) if missing else None
    if folder is None:
        return config
    found = {name: folder / path for name, path in missing.items() if (folder / path).exists()}
    return replace(config, **{
        name: getattr(config, name).replace(missing[name], str(path), 1) for name, path in found.items()
    })  # fmt: skip


def check_started_here(config: Config, run: Path) -> None:
    """Raise UserError if files that a run's settings name are only in its start folder."""
    if located(config, run) != config:
        folder = shlex.quote(str(start_folder(run)))
        raise UserError(
            f"{run}: its settings name files in the folder where it was started; go there first: cd {folder}"
        )


def _files(config: Config) -> Iterator[tuple[str, str]]:
    """(setting, path) of the files and folders that settings name."""
    for name, setting in SETTINGS.items():
        value = getattr(config, name)
        if not isinstance(value, str):
            continue
        module, _, _ = value.rpartition(":")
        if setting.own and module.endswith(".py"):
            yield name, module
        elif setting.path or (name == "dataset" and value.endswith(SUFFIX)):
            yield name, value
        elif name == "dataset" and (kind := FILE_KINDS.find(value)) is not None and "path" in kind[1]:
            yield name, kind[1]["path"]
