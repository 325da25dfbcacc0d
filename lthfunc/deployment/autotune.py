"""The fastest format of a layer and the fastest program of a network, measured in turn; dense wins ties."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lthfunc.catalog.deployment import FORMATS
from lthfunc.deployment.formats import MaskedLayer
from lthfunc.deployment.specialized_module import STEADY, Timings
from lthfunc.deployment.timing import ProcessorShare, TimedFunction, in_turn, repeated
from lthfunc.deployment.tuning_cache import TuningCache, layer_key

#: A candidate must take at most this share of the dense time, and be faster in at least this share of the turns.
_MARGIN, _MOST_TURNS = 0.97, 0.75
#: How often programs are measured again, at most, until their times are steady.
_ATTEMPTS = 3
_LAYER_SECONDS, _LAYER_REPEATS = 0.01, 5
_SECONDS, _REPEATS = 0.05, 9


def fastest_formats(
    layers: Mapping[str, MaskedLayer], able: Mapping[str, list[str]], memory: TuningCache
) -> dict[str, str]:
    """The fastest format of each layer, for layers where one is faster than dense."""
    chosen = {}
    for name, layer in layers.items():
        keys = {form: layer_key(layer, form) for form in ("dense", *able[name])}
        if any(memory.get(key) is None for key in keys.values()):
            runs = {form: _layer_run(layer, form) for form in keys}
            with torch.no_grad():
                rates = in_turn(runs, seconds=_LAYER_SECONDS, repeats=_LAYER_REPEATS, device=str(layer.x.device))
            memory.put({keys[form]: [1 / rate for rate in found] for form, found in rates.items()})
        seconds = {form: statistics.median(memory.get(key) or [0.0]) for form, key in keys.items()}
        best = min(seconds, key=lambda form: seconds[form])
        if best != "dense" and seconds[best] < _MARGIN * seconds["dense"]:
            chosen[name] = best
    return chosen


def _layer_run(layer: MaskedLayer, form: str) -> TimedFunction:
    module = layer.module if form == "dense" else FORMATS.load(form).make(layer)
    return repeated(lambda: module(layer.x))


def fastest(
    runs: Mapping[str, Callable[[Tensor], Any]],
    keys: Mapping[str, str],
    x: Tensor,
    memory: TuningCache,
    beside: Collection[str] = (),
) -> tuple[str, Timings]:
    """Return (the fastest candidate, the times). Times that are not steady are measured again, and not cached.

    runs: "dense" among them; keys: of each in the cache. beside: those that are measured, and not chosen.
    """
    known = {name: memory.get(keys[name]) for name in runs}
    turns = {name: found for name, found in known.items() if found is not None}
    measured = Timings(turns, len(x))
    if len(turns) < len(runs):
        attempts: list[Timings] = []
        while len(attempts) < _ATTEMPTS and not (attempts and _is_steady(attempts[-1])):
            watch = ProcessorShare()
            calls = {name: watch.watched(repeated(lambda run=run: run(x))) for name, run in runs.items()}  # type: ignore[misc]
            with torch.no_grad():
                rates = in_turn(calls, seconds=_SECONDS, repeats=_REPEATS, device=str(x.device))
            found = {name: [1 / rate for rate in each] for name, each in rates.items()}
            attempts.append(Timings(found, len(x), watch.share if x.device.type == "cpu" else None))
        measured = min(attempts, key=lambda each: (each.disturbed, _unsteadiness(each)))
        if _is_steady(measured):
            memory.put({keys[name]: found for name, found in measured.turns.items()})
    seconds, dense = measured.seconds, measured.turns["dense"]
    faster = [
        name for name in runs if name not in beside
        and seconds[name] < _MARGIN * seconds["dense"] and _share_won(measured.turns[name], dense) >= _MOST_TURNS
    ]  # fmt: skip
    return min(faster, key=lambda name: seconds[name], default="dense"), measured


def _is_steady(measured: Timings) -> bool:
    return not measured.disturbed and _unsteadiness(measured) <= STEADY


def _unsteadiness(measured: Timings) -> float:
    """The spread of the times that are compared: of the dense network and of the fastest program."""
    seconds = measured.seconds
    return max(measured.spread("dense"), measured.spread(min(seconds, key=lambda name: seconds[name])))


def _share_won(mine: list[float], dense: list[float]) -> float:
    return sum(one < other for one, other in zip(mine, dense, strict=False)) / len(dense)
