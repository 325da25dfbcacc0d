"""Schemas of a run's lines, so that the code that uses them needn't check them again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, cast

from annotated_types import Ge, Le, Len, MinLen
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, ValidationError

from lthfunc.catalog.pruning import CONTROLS
from lthfunc.experiments.iterative import TICKET
from lthfunc.printable import can_be_shown


def _shown(text: str) -> str:
    if not all(map(can_be_shown, text)):
        raise ValueError("has control characters")
    return text


def _is_text(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise ValueError("is not text")
    return value


Whole = Annotated[int, Ge(0), Le(2**62)]
Share = Annotated[float, Ge(0), Le(1)]
#: A number small enough that its square is finite.
Finite = Annotated[float, Ge(-1e100), Le(1e100)]
Duration = Annotated[float, Ge(0), Le(1e12)]
Text = Annotated[str, AfterValidator(_shown)]
#: A path may have any name; pydantic's own strings must be UTF-8.
_Path = Annotated[Any, AfterValidator(_is_text)]


class LineSchema(BaseModel):
    """A line. Newer versions may add fields."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Machine(LineSchema):
    """The machine that something ran on."""

    lthfunc: Text
    lthfunc_source: Text | None = None  # since 0.2.0
    torch: Text
    python: Text
    processor: Text
    threads: Whole
    gpu: Text | None


class _Branched(LineSchema):
    run: Annotated[_Path, MinLen(1)]
    round: Whole


class _Data(LineSchema):
    val: Annotated[int, Ge(1), Le(2**62)] | None = None
    shape: list[Annotated[int, Ge(1), Le(2**31)]] | None = None


class Header(LineSchema):
    """The first line of a run."""

    command: Literal["prune", "train", "transfer"]
    machine: Machine
    config: dict[str, Any]
    source: _Path = None
    branched: _Branched | None = None
    data: _Data | None = None


class _Layer(LineSchema):
    kept: Whole
    total: Whole
    density: Share


class Amounts(LineSchema):
    """Energy: see energy/amounts.py."""

    kwh: Finite
    kg: Finite
    seconds: Finite
    cpu: Finite
    gpu: Finite
    ram: Finite


class _Energy(LineSchema):
    source: Text
    preparation: Amounts
    training: Amounts
    evaluation: Amounts
    epochs: list[Annotated[list[Finite], Len(7, 7)]]


class _Update(LineSchema):
    step: Whole
    layers: dict[Text, Annotated[list[Whole], Len(3, 3)]]
    masks_sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class _Training(LineSchema):
    seed: Whole
    round: Annotated[int, Ge(0), Le(10_000)]
    variant: str
    kept: Whole
    total: Whole
    density: Share
    layers: dict[Text, _Layer]
    early_stop_step: Whole
    val_loss: float
    val_accuracy: float
    test_loss: float
    test_accuracy: float
    final_step: Whole
    final_val_loss: float
    final_val_accuracy: float
    seconds: Duration
    metric: Text = "accuracy"
    energy: _Energy = cast(_Energy, None)  # optional, but never null
    updates: list[_Update] = []
    curve: list[list[float | None]]


def training_problem(line: Mapping[str, Any], first: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a training's line, or None. first: another training's line of the run."""
    found = line_problem(_Training, line)
    if found is not None:
        return found
    if line["variant"] != TICKET and not CONTROLS.has(line["variant"]):
        return f"its variant is {line['variant']!r}"
    points = line["curve"]
    if not all(len(point) == 4 and isinstance(point[0], int) and None not in point[2:] for point in points):
        return "a point of its curve is not a step, two losses and an accuracy"
    if line["early_stop_step"] not in [point[0] for point in points]:
        return "its early-stopping step is not on its curve"
    updates = line.get("updates", ())
    if any(each["layers"].keys() != line["layers"].keys() for each in updates):
        return "an update of its masks has other layers"
    if any(later["step"] <= each["step"] for each, later in pairwise(updates)):
        return "the updates of its masks are not in the order of their steps"
    if first is not None and (line["layers"].keys(), line["total"]) != (first["layers"].keys(), first["total"]):
        return "its layers are not those of the other trainings"
    return None


def line_problem(kind: type[BaseModel], line: Mapping[str, Any]) -> str | None:
    """What is wrong with a line of a kind, or None."""
    try:
        kind.model_validate(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    return None
