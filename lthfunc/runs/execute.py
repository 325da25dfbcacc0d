"""Carry out a plan for every seed, writing each training to the run folder as it ends."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple, Protocol

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan, iterative
from lthfunc.experiments.records import Record, record
from lthfunc.runs.folder import done_so_far, save_training
from lthfunc.training.loop import Point
from lthfunc.trees.ops import density
from lthfunc.trees.types import TrainState


class Training(NamedTuple):
    """A training that begins."""

    replicate: int
    seed: int
    number: int
    variant: str
    density: float
    start: int
    stop: int


class Watcher(Protocol):
    """Whoever shows progress."""

    def total(self, steps: int) -> None:
        """So many training steps lie ahead."""

    def begin(self, training: Training) -> None:
        """A training begins."""

    def step(self, number: int, point: Point | None) -> None:
        """A step was taken, or (with a point) the validation split was measured."""

    def end(self, item: Record) -> None:
        """A training ended and is on disk."""


def execute(config: Config, plan: Plan, folder: Path, watcher: Watcher, earlier: list[Record]) -> list[Record]:
    """Run what is missing of an experiment; returns the records of all its trainings, earlier ones included."""
    records = list(earlier)
    watcher.total(_steps_ahead(config, plan, earlier))
    for replicate in range(config.replicates):
        seed = config.seed + replicate
        clock = time.perf_counter()

        def announce(
            number: int, variant: str, start: TrainState, replicate: int = replicate, seed: int = seed
        ) -> None:
            step = int(start.step)
            watcher.begin(Training(replicate, seed, number, variant, density(start.masks), step, plan.steps))

        for result in iterative(
            plan,
            seed,
            device=config.device,
            done=done_so_far(folder, plan, seed, earlier),
            announce=announce,
            observe=watcher.step,
        ):
            item = record(result, replicate=replicate, seed=seed, seconds=time.perf_counter() - clock)
            save_training(folder, config, seed, result, item, first_seed=replicate == 0)
            records.append(item)
            watcher.end(item)
            clock = time.perf_counter()
    return records


def _steps_ahead(config: Config, plan: Plan, earlier: list[Record]) -> int:
    done = {(item["seed"], item["round"], item["variant"]) for item in earlier}
    return sum(
        plan.steps_of(number, variant)
        for replicate in range(config.replicates)
        for number in range(plan.rounds + 1)
        for variant in (TICKET, *(plan.controls if number else ()))
        if (config.seed + replicate, number, variant) not in done
    )
