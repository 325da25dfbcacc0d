"""The fastest format of a layer and the fastest program of a network, measured in turn; dense wins ties."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lthfunc.catalog.deployment import FORMATS
from lthfunc.deployment.formats import MaskedLayer
from lthfunc.deployment.specialized_module import Timings
from lthfunc.deployment.timing import TimedFunction, in_turn, repeated
from lthfunc.deployment.tuning_cache import TuningCache, layer_key

#: A candidate must take at most this share of the dense time, and be faster in at least this share of the turns.
_MARGIN, _MOST_TURNS = 0.97, 0.75
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
            memory.put({keys[form]: 1 / statistics.median(found) for form, found in rates.items()})
        seconds = {form: memory.get(key) or 0.0 for form, key in keys.items()}
        best = min(seconds, key=lambda form: seconds[form])
        if best != "dense" and seconds[best] < _MARGIN * seconds["dense"]:
            chosen[name] = best
    return chosen


def _layer_run(layer: MaskedLayer, form: str) -> TimedFunction:
    module = layer.module if form == "dense" else FORMATS.load(form).make(layer)
    return repeated(lambda: module(layer.x))


def fastest(
    runs: Mapping[str, Callable[[Tensor], Any]], keys: Mapping[str, str], x: Tensor, memory: TuningCache
) -> tuple[str, Timings]:
    """Return (the fastest candidate, the times). runs: "dense" among them; keys: of each in the cache."""
    won = {name: f"turns won by {key}" for name, key in keys.items()}
    if any(memory.get(key) is None for key in (*keys.values(), *won.values())):
        calls = {name: repeated(lambda run=run: run(x)) for name, run in runs.items()}  # type: ignore[misc]
        with torch.no_grad():
            rates = in_turn(calls, seconds=_SECONDS, repeats=_REPEATS, device=str(x.device))
        medians = {keys[name]: 1 / statistics.median(found) for name, found in rates.items()}
        memory.put(medians | {won[name]: _share_won(found, rates["dense"]) for name, found in rates.items()})
    seconds = {name: memory.get(key) or 0.0 for name, key in keys.items()}
    faster = [
        name for name in runs
        if seconds[name] < _MARGIN * seconds["dense"] and (memory.get(won[name]) or 0) >= _MOST_TURNS
    ]  # fmt: skip
    return min(faster, key=lambda name: seconds[name], default="dense"), Timings(seconds, len(x))


def _share_won(rates: list[float], dense: list[float]) -> float:
    return sum(mine > theirs for mine, theirs in zip(rates, dense, strict=True)) / len(dense)
