"""The benchmark of memory: which runs it makes of a method."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import memory
from lthfunc.experiments.config import Config
from lthfunc.experiments.resolve import resolved


@pytest.mark.parametrize(("method", "rounds"), [("dense", 0), ("set", 1), ("one-shot", 1)])
def test_a_method_gets_settings_that_it_takes(method: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dense`, which prunes nothing, was given a density, and refused by a message on a file of the benchmark's own."""
    made: list[Config] = []

    def watched(config: Config, scratch: Path) -> tuple[memory.Watching, float]:
        made.append(resolved(config))
        watching = memory.Watching()
        watching.evaluating.append(1.0)
        return watching, 1.0

    monkeypatch.setattr(memory, "_watched", watched)
    assert memory.run(method=method) == [1.0]
    assert made[0].rounds == rounds
