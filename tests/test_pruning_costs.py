"""Prunings that train a network of their own count: seconds and energy of the training that they are for."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import run
from method_plans import plan_for

import lthfunc as lf
from lthfunc.energy.amounts import Amount, as_values, nothing_yet
from lthfunc.energy.meter import Source
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.task_schedules import in_turn
from lthfunc.experiments.trainings import train_together
from lthfunc.runs.folder import read_run
from lthfunc.scheduling import pruning_costs
from lthfunc.scheduling.pruning_costs import PruningCosts, rounds_noting_costs, with_pruning
from lthfunc.scheduling.queue import TrainingCost
from lthfunc.trees.types import Dataset

SMALL = ["--steps", "6", "--eval-every", "3", "--batch-size", "40", "--density", "0.3", "--engine", "eager"]


class World:
    """A clock and a meter, which go on when a network is pruned or trained."""

    source = Source("counted", "USA", True)

    def __init__(self) -> None:
        self.now = self.drawn = self.read = 0.0

    def passes(self, seconds: float, kwh: float) -> None:
        self.now, self.drawn = self.now + seconds, self.drawn + kwh

    def lap(self) -> Amount:
        since, self.read = self.drawn - self.read, self.drawn
        return Amount(kwh=since)


@pytest.mark.parametrize("method", ["rebasin", "one-shot"])
def test_what_a_pruning_takes_is_noted_if_it_trains(
    method: str, few_digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, costs = World(), PruningCosts()
    monkeypatch.setattr(pruning_costs, "time", SimpleNamespace(perf_counter=lambda: world.now))
    plan = plan_for(method, lf.models.lenet300((1, 8, 8), 10), few_digits, steps=2, eval_every=2, density=0.3)

    def pruner(trained: lf.TrainState, now: Any, density: float) -> lf.TrainState:
        world.passes(7.0, 3.0)
        return lf.prune(density=density)(trained)

    def trained(plan: Plan, task: Any) -> Any:
        world.passes(100.0, 50.0)
        return train_together(plan, [task])[0]

    plan = plan._replace(pruner=pruner)
    schedule = rounds_noting_costs(plan, 4, "cpu", None, world, costs)
    assert [each.number for each in in_turn(schedule, lambda task: trained(plan, task))] == [0, 1]
    assert costs == ({(4, 1, "ticket"): (7.0, Amount(kwh=3.0))} if method == "rebasin" else {})


def test_it_is_added_to_the_trainings_preparation() -> None:
    energy = {"source": "counted", **as_values(nothing_yet())}
    whole = with_pruning(TrainingCost(2.0, energy), (7.0, Amount(kwh=3.0, kg=0.5)))
    assert whole.seconds == 9.0
    assert whole.energy == {**energy, "preparation": Amount(kwh=3.0, kg=0.5)._asdict()}
    assert with_pruning(TrainingCost(2.0), (7.0, None)) == TrainingCost(9.0)
    assert with_pruning(TrainingCost(2.0, energy), None) == TrainingCost(2.0, energy)


@pytest.mark.parametrize("command", ["prune --method rebasin --out run", "methods --method rebasin --out study"])
def test_a_runs_record_has_it(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ticks = count(0, 1000)
    monkeypatch.setattr(pruning_costs, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert run(*command.split(), *SMALL) == 0
    folder = Path("study/rebasin-0.3" if "study" in command else "run")
    assert [1000 <= item["seconds"] < 2000 for item in read_run(folder)[2]] == [False, True]
