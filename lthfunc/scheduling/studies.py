"""The trainings of several runs as one queue, each written to its own run's folder as it ends."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, Round, Task
from lthfunc.experiments.records import Record
from lthfunc.experiments.studies import StudyPlans
from lthfunc.experiments.task_schedules import sent
from lthfunc.experiments.trainings import beginning, train_together
from lthfunc.hardware import usable_cores
from lthfunc.runs.folder import in_order
from lthfunc.runs.store import done_so_far
from lthfunc.runs.ticket_files import write_ticket_files
from lthfunc.scheduling.execute import PROCESSES_FROM_STEPS, keep_training, run_all, steps_ahead, trainings_ahead
from lthfunc.scheduling.pruning_costs import PruningCosts, rounds_noting_costs, with_pruning
from lthfunc.scheduling.queue import Beginning, Execution, Queue, TrainingCost, Workload
from lthfunc.trees.packed_states import AnyState


class StudyTask(NamedTuple):
    """A training of one of the runs. run: its name, which is that of its folder. series: those that take turns."""

    run: str
    series: int
    task: Task

    @property
    def seed(self) -> int:
        """Of the training."""
        return self.task.seed

    @property
    def number(self) -> int:
        """Of its round."""
        return self.task.number

    @property
    def variant(self) -> str:
        """A ticket, or a control."""
        return self.task.variant

    @property
    def start(self) -> AnyState:
        """What it is trained from."""
        return self.task.start

    @property
    def key(self) -> tuple[int, int, str]:
        """Identifies it within its run."""
        return self.task.key

    @property
    def description(self) -> str:
        """Its name in messages."""
        return f"{self.run}, {self.task.description}"


class RunUnderWay(NamedTuple):
    """A run of a study. config: with all that was decided. records: of its finished trainings."""

    config: Config
    plan: Plan
    records: list[Record]


def study_workload(configs: Mapping[str, Config]) -> Workload:
    """The trainings of runs with these settings."""
    return Workload(partial(_plans, configs), _begin, _train, _end)


def execute_study(run: Execution, runs: Mapping[str, RunUnderWay], jobs: int) -> dict[str, list[Record]]:
    """Run all missing trainings, up to `jobs` at once; returns the records of each run, earlier ones included.

    run.folder: with a folder for each run, made and begun. Raises Stopped.
    """
    folder = run.folder
    assert folder is not None
    run.watcher.total(steps_left(runs))
    last = max(each.config.seed + each.config.replicates for each in runs.values())
    ahead = [
        (name, seed)
        for seed in range(run.config.seed, last)
        for name, each in runs.items() if seed < each.config.seed + each.config.replicates
    ]  # fmt: skip
    # Networks that wait for their training take memory, so a run's seed is begun when there is room for it.
    costs: dict[str, PruningCosts] = {name: {} for name in runs}
    at_once, waiting = jobs if run.config.executor == "local" else len(ahead), iter(ahead)
    queue = Queue({series: _in_turn(run, runs, series, waiting, costs) for series in range(at_once)})
    records = {name: list(each.records) for name, each in runs.items()}

    def save(task: StudyTask, value: Round, cost: TrainingCost) -> Record:
        whole = with_pruning(cost, costs[task.run].get(task.key))
        item = keep_training(folder / task.run, runs[task.run].config, value, task.seed, whole)
        records[task.run].append(item)
        write_tickets(task.run)
        return item

    def write_tickets(name: str) -> None:
        """As soon as the run has ended: others may take hours, or be interrupted."""
        if not trainings_ahead(runs[name].config, runs[name].plan, records[name]):
            write_ticket_files(folder / name)

    for name in runs:
        write_tickets(name)
    run_all(run, queue, jobs, save)
    return {name: in_order(records[name], each.config.control) for name, each in runs.items()}


def trainings_left(runs: Mapping[str, RunUnderWay]) -> int:
    """How many trainings are missing."""
    return sum(len(trainings_ahead(each.config, each.plan, each.records)) for each in runs.values())


def steps_left(runs: Mapping[str, RunUnderWay]) -> int:
    """How many steps are missing."""
    return sum(steps_ahead(each.config, each.plan, each.records) for each in runs.values())


def jobs_of_study(config: Config, runs: Mapping[str, RunUnderWay]) -> int:
    """The number of concurrent trainings: `--jobs`, or as many as the cores allow; one in a short study."""
    if config.jobs is None and steps_left(runs) < PROCESSES_FROM_STEPS:
        return 1
    return max(1, min(config.jobs or usable_cores() // (config.threads or 1), trainings_left(runs)))


def _in_turn(
    run: Execution, runs: Mapping[str, RunUnderWay], series: int, waiting: Iterator[tuple[str, int]],
    costs: Mapping[str, PruningCosts],
) -> Generator[list[StudyTask], list[Round], None]:  # fmt: skip
    """The trainings of one (run, seed) after the other. waiting: shared with other series. costs: by run."""
    assert run.folder is not None
    for name, seed in waiting:
        config, plan, records = runs[name]
        done = done_so_far(run.folder / name, config.device, seed, records, plan.model)
        schedule = rounds_noting_costs(plan, seed, config.device, done, run.meter, costs[name])
        tasks = next(schedule, None)
        while tasks is not None:
            results = yield [StudyTask(name, series, task) for task in tasks]
            tasks = sent(schedule, results)


def _plans(configs: Mapping[str, Config], config: Config) -> StudyPlans:
    return StudyPlans(configs)


def _begin(plans: StudyPlans, task: StudyTask) -> Beginning:
    return Beginning(*beginning(plans[task.run], task.task))


def _train(
    plans: StudyPlans, tasks: Sequence[StudyTask], beginnings: Sequence[Beginning], observe: Any, checkpointer: Any,
    so_far: Any,
) -> list[Round]:  # fmt: skip
    (task,) = tasks
    return train_together(plans[task.run], [task.task], observe, checkpointer=checkpointer, so_far=so_far)


def _end(plans: StudyPlans, task: StudyTask) -> int:
    return plans[task.run].end_of(task.task)
