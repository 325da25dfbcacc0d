"""One rank of the scale benchmark: a process that measures, and prints its results as one line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import lthfunc as lf
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import surviving_indices
from lthfunc.training.session import TrainingSession

from .networks import Case, cases, images

#: float32 numbers of a collective that spends nearly all of its time on transfer.
LARGE = 2**20


def main() -> int:
    """Measure what the first argument asks for."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    collectives = SINGLE_RANK
    if int(os.environ["WORLD_SIZE"]) > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = asked["interface"]
        distributed.init_process_group("gloo")
        collectives = lf.collectives()
    steps = [_case(each, asked, collectives) for each in asked["cases"]]
    found = {**_link(collectives, asked["seconds"]), "steps": steps}
    if collectives.rank == 0:
        print(json.dumps(found), flush=True)
    if collectives.world_size > 1:
        distributed.barrier()
    os._exit(0)


def _link(collectives: Collectives, seconds: float) -> dict[str, float]:
    """Seconds that a sum of two numbers adds to some computing before it, and of a sum that is all transfer."""
    if collectives.world_size == 1:
        return {}
    left, right, large = torch.randn(128, 256), torch.randn(256, 512), torch.zeros(LARGE)

    def compute() -> None:  # about a millisecond, as between two layers
        for _ in range(8):
            left @ right

    def meet() -> None:
        compute()
        collectives.all_reduce(torch.zeros(2))

    latency = [_mean(meet, seconds, collectives) - _mean(compute, seconds, collectives) for _ in range(3)]
    return {
        "latency": max(0.0, statistics.median(latency)),
        "large": _mean(partial(collectives.all_reduce, large), seconds, collectives),
    }


def _mean(call: Callable[[], object], seconds: float, collectives: Collectives) -> float:
    """Seconds of a call, over as many as fill the time, the same number on every rank, which end together."""
    call()
    begun = time.perf_counter()
    call()
    count = _same(seconds / (time.perf_counter() - begun), 3, 2000, collectives)
    begun = time.perf_counter()
    for _ in range(count):
        call()
    collectives.all_reduce(torch.zeros(2))
    return (time.perf_counter() - begun) / count


def _same(count: float, least: int, most: int, collectives: Collectives) -> int:
    """Rank 0's number, on all ranks."""
    return int(
        collectives.all_reduce(torch.tensor([max(least, min(most, count))], dtype=torch.float64))
        / collectives.world_size
    )


def _case(each: dict[str, Any], asked: dict[str, Any], collectives: Collectives) -> dict[str, Any]:
    """Times of a network's steps through the loop that users run, by density, in turns; and their parts.

    computing: seconds of a step that sends nothing. waiting: seconds that a sum of two numbers adds to it, most of
    them for the slower rank.
    """
    case = cases()[each["network"]]
    data = images(case, "cpu", 5_000)
    mute = Collectives(collectives.rank, collectives.world_size, torch.clone, lambda vector, index: vector.clone())
    dense = lf.init(case.model, 0)
    states = {share: dense if share == 1 else lf.prune(density=share)(dense) for share in asked["densities"]}

    def trainer(transport: Collectives) -> lf.Trainer:
        return lf.make_trainer(
            case.model, data, optimizer=lf.sgd(0.01, momentum=0.9), batch_size=each["batch"], engine=asked["engine"],
            collectives=transport,
        )  # fmt: skip

    def meet() -> None:
        if collectives.world_size > 1:
            collectives.all_reduce(torch.zeros(2))

    talking = trainer(collectives)
    loops = {share: _Loop(talking, state) for share, state in states.items()}
    silent = _Loop(trainer(mute), dense)
    for other in (*loops.values(), silent):
        other.take(2)
    pace = max(other.take(4) for other in loops.values())
    count = _same(asked["seconds"] / pace, 4, 2000, collectives)
    seconds: dict[float, list[float]] = {share: [] for share in loops}
    sent, computing, waiting = dict.fromkeys(loops, 0), list[float](), list[float]()
    for _ in range(asked["repeats"]):
        for share, other in loops.items():
            before = _bytes(asked["interface"])
            seconds[share].append(other.take(count))
            sent[share] += _bytes(asked["interface"]) - before
        computing.append(silent.take(count, last=meet))
        waiting.append(max(0.0, silent.take(count, each=meet) - computing[-1]))
    # The loopback carries the traffic of all ranks, a rank's own link only that of the rank.
    steps = asked["repeats"] * count * (collectives.world_size if asked["interface"] == "lo" else 1)
    return {
        "network": case.name,
        "batch": each["batch"],
        "collectives": 1 + 2 * len(_norms(case)),
        "computing": statistics.median(computing),
        "waiting": statistics.median(waiting),
        "norms": 4 * _channels(case),
        "densities": {
            str(share): {
                "seconds": seconds[share],
                "bytes": sent[share] / steps,
                "numbers": len(surviving_indices(state)),
            }
            for share, state in states.items()
        },
    }


class _Loop:
    def __init__(self, trainer: lf.Trainer, state: lf.TrainState) -> None:
        self._training = TrainingSession(trainer, [state], [0], 10**8)
        self._at = 0

    def take(self, steps: int, each: Callable[[], object] | None = None, last: Callable[[], object] = int) -> float:
        """Seconds of each of so many steps, after each of which, or the last, something else may be done."""
        begun = time.perf_counter()
        if each is None:
            self._to(steps)
        else:
            for _ in range(steps):
                self._to(1)
                each()
        last()
        return (time.perf_counter() - begun) / steps

    def _to(self, steps: int) -> None:
        self._at += steps
        self._training.to(self._at)


def _norms(case: Case) -> list[nn.modules.batchnorm._BatchNorm]:
    return [part for part in case.model.training.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _channels(case: Case) -> int:
    return sum(part.num_features for part in _norms(case))


def _bytes(interface: str) -> int:
    """Bytes that an interface has sent so far; 0 if unknown."""
    try:
        lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    line = next((line for line in lines if line.strip().startswith(f"{interface}:")), "")
    return int(line.partition(":")[2].split()[8]) if line else 0


if __name__ == "__main__":
    sys.exit(main())
