"""Execution: which executor runs a queue, and a run's trainings, each written to its folder as it ends."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, trainings_at_once
from lthfunc.experiments.iterative import TICKET, Plan, Round, Task
from lthfunc.experiments.records import Record, record
from lthfunc.hardware import usable_cores
from lthfunc.runs.checkpoints import drop_checkpoints
from lthfunc.runs.folder import Name, in_order, record_key
from lthfunc.runs.store import done_so_far, save_training
from lthfunc.runs.ticket_files import write_ticket_files
from lthfunc.scheduling.executors import run_on
from lthfunc.scheduling.gpu_memory import width_on
from lthfunc.scheduling.local import in_turn, vmapped
from lthfunc.scheduling.processes import ProcessExecutor
from lthfunc.scheduling.pruning_costs import PruningCosts, rounds_noting_costs, with_pruning
from lthfunc.scheduling.queue import PLANNED, Execution, Queue, Result, TrainingCost, all_at_once
from lthfunc.scheduling.threads import ThreadExecutor, can_share_a_process

#: Steps of a whole run from which worker processes, which take about 3 s to start, pay off.
PROCESSES_FROM_STEPS = 10_000
#: Seconds to wait for a cluster's answer.
_REACH = 10


def execute(run: Execution, earlier: list[Record], jobs: int, tasks: Sequence[Task] | None = None) -> list[Record]:
    """Run the missing trainings of a plan; returns the records of all its trainings, including earlier ones.

    jobs: how many at once (`jobs_of`). tasks: the trainings, if they are known beforehand and don't follow from each
    other. Raises Stopped, once all unfinished trainings have written their checkpoints.
    """
    config, plan, folder = run.config, run.context, run.folder
    assert folder is not None
    run.watcher.total(steps_ahead(config, plan, earlier))
    costs: PruningCosts = {}
    if tasks is None:
        device = config.device
        queue = Queue(
            {
                seed: rounds_noting_costs(
                    plan, seed, device, done_so_far(folder, device, seed, earlier, plan.model), run.meter, costs
                )
                for seed in range(config.seed, config.seed + config.replicates)
            }
        )
    else:
        finished = set(map(record_key, earlier))
        queue = all_at_once([task for task in tasks if task.key not in finished])

    def save(task: Task, value: Round, cost: TrainingCost) -> Record:
        return keep_training(folder, config, value, task.seed, with_pruning(cost, costs.get(task.key)))

    records = in_order([*earlier, *run_all(run, queue, jobs, save)], config.control)
    write_ticket_files(folder)
    return records


def keep_training(folder: Path, config: Config, result: Round, seed: int, cost: TrainingCost) -> Record:
    """Write a finished training to its run's folder; returns its record."""
    item = record(result, replicate=seed - config.seed, seed=seed, metric=config.metric, **cost._asdict())
    save_training(folder, config, seed, result, item)
    return item


def run_all(run: Execution, queue: Queue, jobs: int, save: Callable[[Any, Any, TrainingCost], Record]) -> list[Record]:
    """Run a queue; returns the records of its trainings. save: (task, result, cost) -> record, once it is on disk."""
    records = []
    with closing(results_of(run, queue, jobs)) as results:  # ends the workers, whatever happens
        for task, value, cost in results:
            records.append(save(task, value, cost))
            if (place := run.place(task)) is not None:
                drop_checkpoints(place)
            run.watcher.end(task, records[-1])
            del task, value  # as large as the network, while the next one trains
    return records


def results_of(run: Execution, queue: Queue, jobs: int) -> Generator[Result]:
    """Run a queue on a suitable executor, up to `jobs` trainings at once.

    On a GPU, a plan's trainings are one vmapped program; on a CPU, where that gains nothing, threads or processes.
    """
    config = run.config
    if not queue.ready:
        return in_turn(run, queue)
    if config.executor != "local":
        from lthfunc.scheduling.ray import RayExecutor  # needs an extra

        return run_on(RayExecutor(run, max(len(queue.ready), trainings_at_once(config))), run, queue)
    if jobs == 1:
        return in_turn(run, queue)
    planned = run.workload == PLANNED
    if planned and config.device.startswith("cuda"):
        return vmapped(run, queue, width_on(run.context, jobs, config.device, asked=config.jobs is not None))
    if planned and can_share_a_process(config, run.context):
        return run_on(ThreadExecutor(run, jobs), run, queue)
    return run_on(ProcessExecutor(run, jobs), run, queue)


def check_ray(config: Config) -> None:
    """Raise UserError if Ray is requested but missing, or its cluster doesn't answer."""
    if config.executor != "local" and importlib.util.find_spec("ray") is None:
        raise UserError("--executor: ray needs the package ray (pip install 'lthfunc[ray]')")
    if config.executor.startswith("ray://"):
        host, _, port = config.executor.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), _REACH).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--executor: {config.executor!r} cannot be reached ({error})") from error
        from lthfunc.scheduling.ray import join_cluster  # needs an extra

        join_cluster(config.executor)  # now, before anything is written; the connection lasts until this process ends


def jobs_of(config: Config, plan: Plan) -> int:
    """The number of concurrent trainings: `--jobs`, or as many as there are.

    On a CPU, no more than its cores allow; one in a short run that would need processes, whose start takes longer.
    """
    trainings = trainings_at_once(config)
    if plan.trainer.work.collectives.world_size > 1:  # all ranks work on one training
        return 1
    if config.compact and config.device.startswith("cuda"):  # networks of different sizes can't be one program
        return 1
    if config.jobs is not None:
        return min(config.jobs, trainings)
    if config.device.startswith("cuda"):
        return trainings
    if not can_share_a_process(config, plan) and steps_ahead(config, plan, []) < PROCESSES_FROM_STEPS:
        return 1
    return max(1, min(trainings, usable_cores() // (config.threads or 1)))


def trainings_ahead(config: Config, plan: Plan, earlier: Sequence[Record]) -> list[Name]:
    """The trainings of a run that are not finished yet."""
    done = set(map(record_key, earlier))
    return [
        (seed, number, variant)
        for seed in range(config.seed, config.seed + config.replicates)
        for number in range(plan.first, plan.rounds + 1)
        for variant in (TICKET, *(plan.controls if number else ()))
        if (seed, number, variant) not in done
    ]


def steps_ahead(config: Config, plan: Plan, earlier: Sequence[Record]) -> int:
    """The steps of a run that are left."""
    return sum(plan.steps_of(number, variant) for _, number, variant in trainings_ahead(config, plan, earlier))
