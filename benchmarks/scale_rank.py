"""One rank of the scale benchmark: a process that measures, and says what it found as one line of JSON."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

import lthfunc as lf
from lthfunc.training.ranks import travelling
from lthfunc.training.stepping import Training
from lthfunc.trees.shards import ALONE, Exchange

from .networks import Case, cases, images

#: float32 numbers of a collective whose time is all transfer.
LARGE = 2**20


def main() -> int:
    """Measure what the first argument asks for."""
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    exchange = ALONE
    if int(os.environ["WORLD_SIZE"]) > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = asked["interface"]
        distributed.init_process_group("gloo")
        exchange = lf.over()
    found = {
        "large": _large(exchange, asked["seconds"]),
        "steps": [_case(each, asked, exchange) for each in asked["cases"]],
    }
    if exchange.rank == 0:
        print(json.dumps(found), flush=True)
    if exchange.ranks > 1:
        distributed.barrier()
    os._exit(0)


def _large(exchange: Exchange, seconds: float) -> float:
    """Seconds of a sum that is all transfer."""
    vector = torch.zeros(LARGE)
    return _mean(lambda: exchange.total(vector), seconds, exchange)


def _mean(call: Callable[[], object], seconds: float, exchange: Exchange) -> float:
    """Seconds of a call, over as many as fill the time, the same number on every rank."""
    call()
    begun = time.perf_counter()
    call()
    count = _same(seconds / (time.perf_counter() - begun), 3, 2000, exchange)
    begun = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begun) / count


def _same(count: float, least: int, most: int, exchange: Exchange) -> int:
    """A number that all ranks agree on."""
    return int(exchange.total(torch.tensor([max(least, min(most, count))], dtype=torch.float64)) / exchange.ranks)


def _case(each: dict[str, Any], asked: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
    """A network's steps through the loop that users run, per density, in turns; what they are made of beside them.

    computing: seconds of a step that sends nothing; latency: that a sum of two numbers adds to it.
    """
    case = cases()[each["network"]]
    data = images(case, "cpu", 5_000)
    mute = Exchange(exchange.rank, exchange.ranks, torch.clone, lambda vector, index: vector.clone())
    dense = lf.init(case.model, 0)
    states = {share: dense if share == 1 else lf.prune(density=share)(dense) for share in asked["densities"]}

    def loop(transport: Exchange, state: lf.TrainState) -> _Loop:
        trainer = trainers.setdefault(
            id(transport),
            lf.make_trainer(
                case.model, data, optimizer=lf.sgd(0.01, momentum=0.9), batch_size=each["batch"],
                engine=asked["engine"], exchange=transport,
            ),
        )  # fmt: skip
        return _Loop(trainer, state)

    trainers: dict[int, lf.Trainer] = {}
    loops = {share: loop(exchange, state) for share, state in states.items()}
    silent = loop(mute, dense)
    for other in (*loops.values(), silent):
        other.take(2)
    pace = max(other.take(4) for other in loops.values())
    count = _same(asked["seconds"] / pace, 4, 2000, exchange)
    seconds: dict[float, list[float]] = {share: [] for share in loops}
    sent, computing, latency = dict.fromkeys(loops, 0), list[float](), list[float]()
    for _ in range(asked["repeats"]):
        for share, other in loops.items():
            before = _bytes(asked["interface"])
            seconds[share].append(other.take(count))
            sent[share] += _bytes(asked["interface"]) - before
        computing.append(silent.take(count))
        latency.append(silent.take(count, lambda: exchange.total(torch.zeros(2))) - computing[-1])
    # The loopback carries every rank's traffic, a link of a rank's own only that rank's.
    steps = asked["repeats"] * count * (exchange.ranks if asked["interface"] == "lo" else 1)
    return {
        "network": case.name,
        "batch": each["batch"],
        "collectives": 1 + 2 * _norms(case),
        "computing": statistics.median(computing),
        "latency": statistics.median(latency),
        "densities": {
            str(share): {"seconds": seconds[share], "bytes": sent[share] / steps, "numbers": len(travelling(state))}
            for share, state in states.items()
        },
    }


class _Loop:
    def __init__(self, trainer: lf.Trainer, state: lf.TrainState) -> None:
        self._training = Training(trainer, [state], [0], 10**8)
        self._at = 0

    def take(self, steps: int, after: Callable[[], object] | None = None) -> float:
        """Seconds of each of so many steps, after each of which something else may be done."""
        begun = time.perf_counter()
        if after is None:
            self._to(steps)
        else:
            for _ in range(steps):
                self._to(1)
                after()
        return (time.perf_counter() - begun) / steps

    def _to(self, steps: int) -> None:
        self._at += steps
        self._training.to(self._at)


def _norms(case: Case) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in case.model.training.modules())


def _bytes(interface: str) -> int:
    """That an interface has sent so far; 0 where the system doesn't say."""
    try:
        lines = Path("/proc/net/dev").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    line = next((line for line in lines if line.strip().startswith(f"{interface}:")), "")
    return int(line.partition(":")[2].split()[8]) if line else 0


if __name__ == "__main__":
    sys.exit(main())
