"""What the lines of a run must hold, so that whoever reads them later need not doubt it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, ValidationError

from lthfunc.experiments.config import CONTROLS
from lthfunc.experiments.iterative import TICKET

Whole = Annotated[int, Ge(0), Le(2**62)]
Share = Annotated[float, Ge(0), Le(1)]


class _Line(BaseModel):
    """A newer version may write more into a line."""

    model_config = ConfigDict(extra="ignore", strict=True)


class _Machine(_Line):
    lthfunc: str
    torch: str
    python: str
    processor: str
    threads: Whole
    gpu: str | None


class _Branched(_Line):
    run: str
    round: Whole


class _Header(_Line):
    command: Literal["prune", "train", "transfer"]
    machine: _Machine
    config: dict[str, Any]
    source: str | None = None
    branched: _Branched | None = None


class _Layer(_Line):
    kept: Whole
    total: Whole
    density: Share


class _Training(_Line):
    seed: Whole
    round: Annotated[int, Ge(0), Le(10_000)]
    variant: str
    kept: Whole
    total: Whole
    density: Share
    layers: dict[str, _Layer]
    early_stop_step: Whole
    val_loss: float
    val_accuracy: float
    test_loss: float
    test_accuracy: float
    final_step: Whole
    final_val_loss: float
    final_val_accuracy: float
    seconds: float
    metric: str = "accuracy"
    curve: list[list[float | None]]


def header_problem(line: Mapping[str, Any]) -> str | None:
    """What is wrong with a run's first line; None for nothing."""
    return _problem(_Header, line)


def training_problem(line: Mapping[str, Any], first: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a training's line; None for nothing. first: another training's line of the run."""
    found = _problem(_Training, line)
    if found is not None:
        return found
    if line["variant"] not in (TICKET, *CONTROLS):
        return f"its variant is {line['variant']!r}"
    points = line["curve"]
    if not all(len(point) == 4 and isinstance(point[0], int) and None not in point[2:] for point in points):
        return "a point of its curve is not a step, two losses and an accuracy"
    if line["early_stop_step"] not in [point[0] for point in points]:
        return "its early-stopping step is not on its curve"
    if first is not None and (line["layers"].keys(), line["total"]) != (first["layers"].keys(), first["total"]):
        return "its layers are not those of the other trainings"
    return None


def _problem(kind: type[BaseModel], line: Mapping[str, Any]) -> str | None:
    try:
        kind.model_validate(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return None
