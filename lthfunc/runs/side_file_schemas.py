"""Schemas of a run's other files: measurements, sessions, progress, holder. What does not fit is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, ValidationError

from lthfunc.runs.line_schemas import Finite, LineSchema, Machine, Share, Text, Whole, line_problem

#: A process's number.
Pid = Annotated[int, Ge(1), Le(2**31 - 1)]


class _Point(LineSchema):
    step: Whole
    loss: float
    accuracy: float


class _UnderWay(LineSchema):
    seed: Whole
    round: Whole
    variant: Text
    density: Share
    start: Whole
    at: Whole
    stop: Whole
    rate: Annotated[Finite, Ge(0)] | None = None
    point: _Point | None


class Progress(LineSchema):
    """The content of .progress.json."""

    time: Finite
    done: Whole
    total: Whole
    left: Annotated[Finite, Ge(0)] | None = None
    metric: Text = "accuracy"
    trainings: list[_UnderWay]


class Holder(LineSchema):
    """The content of .holder.json."""

    pid: Pid
    host: Text
    since: Text = ""
    heard: Finite = 0.0


class _Git(LineSchema):
    commit: Text | None = None


class _Session(LineSchema):
    command: str | None = None
    git: _Git | None = None


class _Bytes(LineSchema):
    dense: Whole
    program: Whole


class _Measured(LineSchema):
    time: Text = ""
    machine: Machine
    round: Whole


_Time = Annotated[Finite, Gt(0)]


def _has_dense(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if found and "dense" not in found:
        raise ValueError("has no dense")
    return found


class _Execution(_Measured):
    form: Text
    bytes: _Bytes
    compression_ratio: float
    theoretical_speedup: float
    batch_size: Annotated[int, Ge(1), Le(2**31)] | None = None
    program: Text | None = None
    seconds_a_batch: Annotated[dict[Text, _Time] | None, AfterValidator(_has_dense)] = None
    turns: Annotated[dict[Text, Annotated[list[_Time], MinLen(2)]] | None, AfterValidator(_has_dense)] = None
    processor_share: Annotated[float, Ge(0)] | None = None


class _Spread(LineSchema):
    mean: Finite
    std: Finite
    values: Annotated[list[Finite], MinLen(1)]


class _Inference(LineSchema):
    kwh: _Spread
    kg: _Spread
    seconds: _Spread


class _Energy(_Measured):
    samples: Whole
    repeats: Whole
    batch_size: Whole
    source: Text
    country: Text
    formats: Annotated[dict[Text, _Inference], MinLen(1)]


class _Barrier(LineSchema):
    k: Whole
    barrier: Finite
    metric: Text = "accuracy"
    alphas: Annotated[list[Finite], MinLen(1)]
    error: Annotated[list[Finite], MinLen(1)]


def _alike(found: list[_Barrier]) -> list[_Barrier]:
    lengths = {len(values) for each in found for values in (each.alphas, each.error)}
    if len(lengths) > 1:
        raise ValueError("has lines of different lengths")
    return found


class _Connectivity(LineSchema):
    results: Annotated[list[_Barrier], MinLen(1), AfterValidator(_alike)]


_KINDS: dict[object, type[LineSchema]] = {"execution": _Execution, "energy": _Energy, "connectivity": _Connectivity}


def measurement_problem(line: Mapping[str, Any]) -> str | None:
    """What is wrong with a line of measured.jsonl, or None. Kinds of newer versions are not checked."""
    kind = line.get("kind")
    if not isinstance(kind, str):
        return "it has no kind"
    return line_problem(_KINDS[kind], line) if kind in _KINDS else None


#: What is wrong with the fields of a line of environment.jsonl that are read, or None.
session_problem = partial(line_problem, _Session)


def content_of(kind: type[LineSchema], payload: bytes) -> dict[str, Any] | None:
    """The content of a file of one JSON object; None if it is not valid."""
    try:
        return kind.model_validate_json(payload).model_dump()
    except ValidationError:
        return None
