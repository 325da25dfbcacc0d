"""Published methods as trainings of the queue: one per method and seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lthfunc.catalog.courses import COURSES
from lthfunc.experiments.config import Config
from lthfunc.experiments.courses.context import MethodContext, Outcome, start
from lthfunc.experiments.courses.course import Course, Method, follow
from lthfunc.experiments.courses.prepare import method_context
from lthfunc.experiments.records import Record
from lthfunc.hardware import usable_cores
from lthfunc.runs.method_results import add_result, drop_checkpoint_folder, save_network
from lthfunc.scheduling.execute import run_all
from lthfunc.scheduling.queue import Beginning, Execution, TrainingCost, Workload, all_at_once
from lthfunc.sparsify.mask_comparison import collapsed_layers
from lthfunc.trees.ops import count


class MethodTask(NamedTuple):
    """A method with a seed."""

    seed: int
    method: str
    number: int = 0  # as for a plan's trainings; executors sort by it

    @property
    def variant(self) -> str:
        """Identifies it among those of its seed."""
        return self.method

    @property
    def key(self) -> tuple[int, int, str]:
        """Identifies it among all."""
        return self.seed, self.number, self.method

    @property
    def description(self) -> str:
        """Its name in messages."""
        return f"{self.method} with seed {self.seed}"


def compare(
    run: Execution,
    methods: Sequence[str],
    earlier: Sequence[Record],
    path: Path | None = None,
    save: Path | None = None,
) -> list[Record]:
    """Run the missing trainings of a comparison; returns all its records, in the order of methods and seeds.

    path: of the file of results; save: the folder for trained networks. Raises Stopped.
    """
    config = run.config
    seeds = range(config.seed, config.seed + config.replicates)
    done = {(item["seed"], item["method"]) for item in earlier}
    tasks = [MethodTask(seed, name) for seed in seeds for name in methods if (seed, name) not in done]
    jobs = min(config.jobs or max(1, usable_cores() // (config.threads or 1)), len(tasks))

    def record(task: MethodTask, outcome: Outcome, cost: TrainingCost) -> Record:
        item = {**_record(task, outcome, cost), "metric": config.metric}
        if save is not None:
            save_network(save, item, outcome.ticket)
        if path is not None:
            add_result(path, item)
        return item

    records = [*earlier, *run_all(run, all_at_once(tasks), jobs, record)]
    if path is not None:
        drop_checkpoint_folder(path)
    wanted = [item for item in records if item["method"] in methods and item["seed"] in seeds]
    return sorted(wanted, key=lambda item: (list(methods).index(item["method"]), item["seed"]))


def _record(task: MethodTask, outcome: Outcome, cost: TrainingCost) -> Record:
    """The result of a method with a seed, as plain values."""
    masks = outcome.ticket.masks
    whole = count(masks)
    return {
        "method": task.method,
        "seed": task.seed,
        "kept": whole.kept,
        "total": whole.total,
        "density": whole.density,
        "test_accuracy": outcome.test.accuracy,
        "test_loss": outcome.test.loss,
        "steps": outcome.steps,
        "collapsed": list(collapsed_layers(masks)),
        "seconds": round(cost.seconds, 3),
        **({} if cost.energy is None else {"energy": cost.energy}),
    }


def _context(config: Config) -> MethodContext:
    return method_context(config)[1]


def _begin(setting: MethodContext, task: MethodTask) -> Beginning:
    method = COURSES.make(task.method, {}, Outcome)
    if not isinstance(method, Method):  # a user's function, which trains by itself
        return Beginning(start(setting, task.seed), setting.trainer, method)
    course = method.course(setting, task.seed)
    return Beginning(course.start.state, course.trainer, course)


def _train(
    setting: MethodContext, tasks: Sequence[MethodTask], beginnings: Sequence[Beginning], *rest: Any
) -> list[Outcome]:
    (task,), (beginning,) = tasks, beginnings
    observe, checkpointer, so_far = rest
    if not isinstance(beginning.course, Course):
        return [beginning.course(setting, task.seed)]
    return [follow(setting, task.seed, beginning.course, observe, checkpointer, so_far and so_far[0])]


def _end(setting: MethodContext, task: MethodTask) -> int:
    """The length of one training; a method may consist of several."""
    return setting.steps


COMPARED = Workload(_context, _begin, _train, _end)
