"""A network of 10⁹ weights and more, of which 10⁶ are there: trained with updates of SET and RigL, without dense trees.

    lthfunc benchmark dynamic --scale

An MLP of 3072-32768-32768-10 on the meta device, random inputs, Adam, three tenths of the weights exchanged in each
update. Memory is the largest of the process so far, Python and PyTorch included; a survivor's bytes are those of the
state between two steps, and what the training took at most besides what was there before. The lower bound is a value,
two moments and an index of four bytes.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

import lthfunc as lf
from lthfunc.errors import invalid
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.results import DenseNetwork, DropAndGrow
from lthfunc.trees.ops import leaves
from lthfunc.trees.types import TrainState

from .records import Record, record

#: Features of the layers, survivors, and examples in a step.
SIDES, SURVIVORS, BATCH = (3072, 32_768, 32_768, 10), 1_000_000, 60
#: The share exchanged in an update, and the bytes of a value, two moments and an index.
_DROP, _FLOOR = 0.3, 16


def network() -> nn.Module:
    """On the meta device, where it takes no memory."""
    with torch.device("meta"):
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(SIDES):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1])


def measured(steps: int, every: int, repeats: int, about: dict[str, Any]) -> list[Record]:
    """Train in turns, print and return steps/s, the time of an update, and memory."""
    if steps <= 2 * every:
        raise invalid("--steps", steps, f"{2 * every + 1} or more, so that masks change twice")
    net, data = network(), _data()
    weights = sum(leaf.numel() for leaf in net.parameters() if leaf.ndim > 1)
    before, begun = _peak(), time.perf_counter()
    state = lf.init_packed(net, SURVIVORS / weights)
    print(f"{state!r} after {time.perf_counter() - begun:.2f} s")
    found: tuple[list[float], ...] = ([], [], [])
    updating = range(every, steps, every)
    kinds = (None, _updates(updating, _at_random), _updates(updating, _by_gradient(data)))
    for rates, updates in repeats * list(zip(found, kinds, strict=True)):
        train = lf.train_packed(net, data, optimizer=lf.adam(1e-3), steps=1 + steps, batch_size=BATCH, updates=updates)
        first = lf.train_packed(net, data, optimizer=lf.adam(1e-3), steps=1, batch_size=BATCH)(state)
        begun = time.perf_counter()
        last = train(first)
        rates.append(steps / (time.perf_counter() - begun))
    kept = sum(map(len, last.positions.values()))
    held = sum(leaf.nbytes for leaf in leaves(last))
    medians = [statistics.median(rates) for rates in found]
    peak = _peak()
    print(f"{medians[0]:10.2f} steps/s with a fixed mask")
    for name, rate in zip(("SET", "RigL"), medians[1:], strict=True):
        update = (steps / rate - steps / medians[0]) / len(updating)
        print(f"{rate:10.2f} steps/s by {name}, {1000 * update:.0f} ms an update every {every} steps")
    print(f"{peak / 2**30:10.2f} GiB at most, {(peak - before) / 2**30:.2f} of them for the training")
    print(f"{held / kept:10.1f} bytes a survivor in the state, {(peak - before) / kept:.1f} at most, {_FLOOR} at least")
    more = {"survivors": kept, "weights": weights, "peak bytes": peak, "bytes of the training": peak - before,
            "bytes of the state": held, "least bytes": _FLOOR * kept}  # fmt: skip
    names = ("lthfunc, packed, fixed", "lthfunc, packed, SET", "lthfunc, packed, RigL")
    return [
        record(rates, variant=name, density=SURVIVORS / weights, steps=steps, **about, **more)
        for name, rates in zip(names, found, strict=True)
    ]


def _data() -> lf.Dataset:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.rand(10 * BATCH, SIDES[0], generator=draw), torch.arange(10 * BATCH) % SIDES[-1]
    return lf.data.from_tensors("noise", (x, y), (x[:BATCH], y[:BATCH]), val=BATCH)


Exchange = Callable[[DenseNetwork, UpdateContext], DropAndGrow]


def _updates(steps: range, exchange: Exchange) -> lf.MaskUpdates:
    def change(state: TrainState, now: UpdateContext) -> TrainState:
        raise AssertionError("there is no dense state")

    return lf.MaskUpdates(tuple(steps), change, exchange=exchange)


def _at_random(network: DenseNetwork, now: UpdateContext) -> DropAndGrow:
    return lf.random_growth(now.seed, now.step), _DROP


def _by_gradient(data: lf.Dataset) -> Exchange:
    return lambda network, now: (lf.gradient_growth(data, BATCH, now.seed, now.step), _DROP)


def _peak() -> int:
    """The process's largest memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
