"""Teachers out of runs: their file of weights, and the network that these are of. Free of torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import current_names
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.trust import check_trust
from lthfunc.runs import safe_files
from lthfunc.runs.toml_files import read_toml

_CONFIG, _METRICS = "config.toml", "metrics.jsonl"
_SEED = re.compile(r"seed(0|[1-9]\d*)")
#: How far above a file of a run its folder may be.
_DEPTH = 3


def with_file_of_teacher(values: Mapping[str, Any], *, trusted: bool) -> dict[str, Any]:
    """Settings in which a teacher that is a run, or a file of one, is a file, and its network is that run's.

    A run's folder stands for its dense network after training. trusted: whether the run may name code.

    Raises UserError for a folder that is no run, for a run without a finished training, and for one that names code and
    is not trusted.
    """
    teacher = values.get("teacher")
    if not isinstance(teacher, str) or not Path(teacher).exists():
        return {**values}
    path = Path(teacher)
    run = next((folder for folder in (path, *list(path.absolute().parents)[:_DEPTH]) if _is_run(folder)), None)
    if run is None or (path.is_dir() and run != path):
        if path.is_dir():
            raise invalid("--teacher", teacher, "a run's folder, or a file of weights")
        return {**values}
    found: dict[str, Any] = {"teacher": str(_dense(path) if path.is_dir() else path)}
    if "teacher_arch" not in values:
        about = {
            name: value for name, value in current_names(read_toml(run / _CONFIG, run)).items()
            if name in ("arch", "arch_option")
        }  # fmt: skip
        theirs = from_mapping(about)
        check_trust(about, run, trusted=trusted)
        found |= {"teacher_arch": theirs.arch, "teacher_arch_option": theirs.arch_option}
    return {**values, **found}


def _is_run(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and (folder / _METRICS).is_file()


def _dense(run: Path) -> Path:
    """The file of the dense network of a run's first seed."""
    seeds = sorted(int(each.group(1)) for name in safe_files.names(run, run) if (each := _SEED.fullmatch(name)))
    places = [run / f"seed{seed}" / "round00" / "params.safetensors" for seed in seeds]
    found = next((path for path in places if safe_files.exists(run, path)), None)
    if found is None:
        why = "has no trained dense network; name a file of weights" if seeds else "has no finished training yet"
        raise UserError(f"--teacher: {run}: {why}")
    return found
