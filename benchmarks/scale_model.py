"""What a step on several ranks costs: a model of its time, without any measurement.

    step = compute(examples of a rank) + waiting + (collectives - 1) × latency + bytes / rate

`waiting` is the wait for the slowest rank, and the first collective. Only `bytes` falls with density, since only
gradients of surviving weights are sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Link(NamedTuple):
    """A link between ranks. latency: seconds of a collective of a few bytes; rate: bytes per second in each direction.

    waiting: seconds of the first collective in a step, at which ranks wait for each other.
    """

    latency: float
    rate: float
    waiting: float


class Traffic(NamedTuple):
    """What a step sends. numbers: float32 numbers in the gradient's sum; collectives: how many, one after the other."""

    numbers: int
    collectives: int


def sent(traffic: Traffic, ranks: int) -> float:
    """Bytes that each rank sends in a ring: 2 (N - 1) / N of what is summed (Patarasuk and Yuan 2009)."""
    return 2 * (ranks - 1) / ranks * 4 * traffic.numbers


def step_time(compute: float, traffic: Traffic, link: Link, ranks: int) -> float:
    """Seconds of a step. compute: seconds for a rank's part of the batch, without communication."""
    if ranks == 1:
        return compute
    return compute + link.waiting + (traffic.collectives - 1) * link.latency + sent(traffic, ranks) / link.rate


class Fleet(NamedTuple):
    """GPUs. flops: FLOP/s of each in training; rate: bytes/s between two; hop: seconds from one to another."""

    name: str
    flops: float
    rate: float
    hop: float

    def link(self, ranks: int) -> Link:
        """The link between so many: a collective of few bytes goes up and down a tree over the ranks."""
        latency = 2 * math.ceil(math.log2(max(2, ranks))) * self.hop
        return Link(latency, self.rate, latency)


class Network(NamedTuple):
    """A network. flops: of a training step on one example; collectives: per step, including those of BatchNorm."""

    name: str
    weights: int
    flops: float
    collectives: int
    batch: int


#: GPUs of 2024 at the share of their peak that trainings reach, with the links of clusters.
FLEETS = (
    Fleet("400 Tflop/s, 400 Gbit/s links", 400e12, 50e9, 5e-6),
    Fleet("400 Tflop/s, 25 Gbit/s links", 400e12, 3.125e9, 20e-6),
)
#: ResNet-50 on ImageNet: 25.6 million weights, 4.1 GFLOP multiply-adds forward, 53 BatchNorm layers, two collectives
#: of each. A transformer of 1.3 billion weights, at 2,048 tokens an example, six FLOPs a weight and token.
NETWORKS = (
    Network("ResNet-50", 25_557_032, 3 * 2 * 4.1e9, 1 + 2 * 53, 4096),
    Network("transformer 1.3B", 1_300_000_000, 6 * 1.3e9 * 2048, 1, 1024),
)


def efficiency(network: Network, fleet: Fleet, ranks: int, density: float) -> float:
    """Share of the time that is computing, at a fixed batch over all ranks, and all of a dense network's products."""
    compute = network.batch / ranks * network.flops / fleet.flops
    traffic = Traffic(round(density * network.weights), network.collectives)
    return compute / step_time(compute, traffic, fleet.link(ranks), ranks)


def most_ranks(network: Network, fleet: Fleet, density: float, least: float = 0.5, limit: int = 2**14) -> int:
    """The most ranks, a power of two, at which computing is still this share of the time."""
    ranks = 1
    while 2 * ranks <= limit and efficiency(network, fleet, 2 * ranks, density) >= least:
        ranks *= 2
    return ranks


def outlook(
    ranks: Sequence[int] = (8, 64, 256, 1000), densities: Sequence[float] = (1.0, 0.1, 0.01)
) -> list[list[str]]:
    """A line for each network, fleet and density: efficiency at these ranks, and where it falls below a half."""
    return [
        [
            network.name, fleet.name, f"{density:g}",
            *(f"{100 * efficiency(network, fleet, number, density):.0f} %" for number in ranks),
            f"{most_ranks(network, fleet, density):,}",
        ]
        for network in NETWORKS
        for fleet in FLEETS
        for density in densities
    ]  # fmt: skip
