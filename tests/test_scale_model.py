"""What training on several ranks would cost, by a model of links."""

from __future__ import annotations

import pytest

from benchmarks.scale_model import FLEETS, NETWORKS, Link, Traffic, efficiency, most_ranks, sent, step_time


def test_the_cost_model_of_ranks() -> None:
    link = Link(latency=1e-3, rate=1e6, waiting=2e-3)
    assert step_time(1.0, Traffic(1000, 5), link, 1) == 1.0  # alone nothing travels
    assert sent(Traffic(1000, 1), 4) == 2 * 3 / 4 * 4000  # a ring
    assert step_time(1.0, Traffic(1000, 5), link, 4) == pytest.approx(1.0 + 0.002 + 4 * 0.001 + 6000 / 1e6)
    for network in NETWORKS:
        for fleet in FLEETS:
            shares = [efficiency(network, fleet, 64, density) for density in (1.0, 0.1, 0.01)]
            assert 0 < shares[0] < shares[1] < shares[2] < 1
            ranks = most_ranks(network, fleet, 0.1)
            assert efficiency(network, fleet, ranks, 0.1) >= 0.5 > efficiency(network, fleet, 2 * ranks, 0.1)
