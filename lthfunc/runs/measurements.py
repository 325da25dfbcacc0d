"""Measurements of a run after its trainings (speed, energy, connectivity), a line each in its folder.

``measured.jsonl``: ``{"kind": "execution" | "energy" | "connectivity", "time": …, "machine": {…}, …, "sha256": …}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from lthfunc.deployment.specialized_module import Timings
from lthfunc.runs import safe_files
from lthfunc.runs.environment import machine
from lthfunc.runs.json_lines import append_lines, drop_partial_line, whole_lines
from lthfunc.runs.side_file_schemas import measurement_problem

MEASURED = "measured.jsonl"
MeasurementKind = Literal["execution", "energy", "connectivity"]


def keep_measurement(folder: Path, kind: MeasurementKind, device: str, item: Mapping[str, Any]) -> None:
    """Add a measurement to a run. device: of the measurement."""
    path = folder / MEASURED
    if safe_files.exists(folder, path):
        drop_partial_line(path)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    append_lines(path, [{"kind": kind, "time": now, "machine": machine(device), **item}])


def measurements(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(measurements, oldest first; problems of the file, in words)."""
    return whole_lines(folder / MEASURED, measurement_problem)


def timings_of(item: Mapping[str, Any]) -> Timings | None:
    """The times of a measurement of kind "execution"; None where nothing was timed."""
    if not item.get("seconds_a_batch") or not item.get("batch_size"):
        return None
    turns = item.get("turns") or {name: [seconds] * 2 for name, seconds in item["seconds_a_batch"].items()}
    return Timings(turns, item["batch_size"], item.get("processor_share"))
