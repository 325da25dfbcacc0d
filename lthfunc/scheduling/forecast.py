"""The time that a run still takes: from the trainings seen so far, and the cost model for densities not seen yet."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from lthfunc.experiments.iterative import TICKET
from lthfunc.runs.folder import Name

#: Share of a step's time that doesn't depend on its cost: what is expected, and the standard deviations of that and of
#: a measured time.
_FIXED, _FIXED_STD, _TIME_STD = 0.2, 0.1, 0.1
#: Weight of a training against the next one that the same worker trains, since the load of a machine changes.
_DECAY = 0.5


class Seen(NamedTuple):
    """A training's times [s]: before its first step, of these steps, and after the last.

    cost: of a step, by the cost model, in units of the dense network's.
    """

    steps: int
    front: float
    seconds: float
    back: float
    cost: float


class Pace(NamedTuple):
    """A step takes scale * (fixed + (1 - fixed) * cost) seconds; a training, `front` and `back` more steps."""

    scale: float
    fixed: float
    front: float
    back: float

    def step(self, cost: float) -> float:
        """Seconds of a step."""
        return self.scale * (self.fixed + (1 - self.fixed) * cost)

    def training(self, steps: int, cost: float) -> float:
        """Seconds of a training."""
        return (self.front + steps + self.back) * self.step(cost)


def pace_of(seen: Sequence[Seen], workers: int) -> Pace:
    """The pace that explains the times best: least squares of the relative errors, with a prior for the fixed share.

    The first trainings of each worker also compile; later ones are expected to start as quickly as they end.
    """
    steps = [each.seconds / each.steps for each in seen]
    fronts, backs = ([time / step for time, step in zip(times, steps, strict=True)]
                     for times in ([each.front for each in seen], [each.back for each in seen]))  # fmt: skip
    front = median(fronts[workers:]) if fronts[workers:] else min(*fronts, *backs)
    weights = [_DECAY ** ((len(seen) - 1 - place) / workers) for place in range(len(seen))]
    found: list[tuple[float, Pace]] = []
    for fixed in (place / 20 for place in range(1, 21)):
        scales = [step / (fixed + (1 - fixed) * each.cost) for step, each in zip(steps, seen, strict=True)]
        scale = sum(w * each for w, each in zip(weights, scales, strict=True)) / sum(weights)
        misfit = sum(w * (each / scale - 1) ** 2 for w, each in zip(weights, scales, strict=True)) / _TIME_STD**2
        found.append((misfit + ((fixed - _FIXED) / _FIXED_STD) ** 2, Pace(scale, fixed, front, median(backs))))
    return min(found)[1]


def seconds_left(ahead: Mapping[Name, float], running: Mapping[Name, float], workers: int) -> float:
    """When the last training ends: those ahead start in the queue's order, a round once its seed's last one has ended.

    ahead: the seconds that each takes; running: those that each still takes.
    """
    durations = {**ahead, **running}
    unfinished = Counter((seed, number) for seed, number, _ in durations)
    waiting: dict[int, dict[int, list[Name]]] = {}
    for name in sorted(durations):
        waiting.setdefault(name[0], {}).setdefault(name[1], []).extend([name] if name in ahead else [])

    def opened(seed: int) -> list[Name]:
        numbers = waiting[seed]
        return numbers.pop(next(iter(numbers))) if numbers else []

    busy = [(seconds, name) for name, seconds in running.items()]
    heapq.heapify(busy)
    ready = [name for seed in waiting for name in opened(seed)]
    now = 0.0
    while busy or ready:
        ready.sort(key=lambda name: (name[2] != TICKET, name[1], name[0]), reverse=True)
        while ready and len(busy) < workers:
            name = ready.pop()
            heapq.heappush(busy, (now + durations[name], name))
        now, (seed, number, _) = heapq.heappop(busy)
        unfinished[seed, number] -= 1
        if not unfinished[seed, number]:
            ready += opened(seed)
    return now
