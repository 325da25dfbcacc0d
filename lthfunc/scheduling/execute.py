"""Carry out a plan for every seed, writing each training to the run folder as it ends."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from lthfunc.energy.meter import Meter
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, trainings_at_once
from lthfunc.experiments.iterative import TICKET, Plan, Round, Task, rounds
from lthfunc.experiments.records import Record, record
from lthfunc.hardware import usable_cores
from lthfunc.runs.checkpoints import drop_checkpoints
from lthfunc.runs.folder import in_order, name_of_record
from lthfunc.runs.outcome import write_outcome
from lthfunc.runs.store import done_so_far, save_training
from lthfunc.scheduling.checkpointing import Stopping, place_of
from lthfunc.scheduling.executors import by_pool
from lthfunc.scheduling.gpu_memory import width_on
from lthfunc.scheduling.local import Way, in_turn, side_by_side
from lthfunc.scheduling.processes import Processes
from lthfunc.scheduling.queue import Queue, Result, Watcher, name_of
from lthfunc.scheduling.threads import Threads, can_share_a_process

#: Steps of a whole run from which worker processes, which take some 3 s to start, are worth it.
_PROCESSES_FROM_STEPS = 10_000
#: Seconds for a cluster to answer.
_REACH = 10


def execute(
    config: Config,
    plan: Plan,
    folder: Path,
    watcher: Watcher,
    earlier: list[Record],
    tasks: Sequence[Task] | None = None,
    stopping: Stopping = lambda: False,
    meter: Meter | None = None,
) -> list[Record]:
    """Run what is missing of an experiment; returns the records of all its trainings, earlier ones included.

    tasks: the trainings, where they are known beforehand and don't follow from each other. stopping: asked after every
    step, and raises Stopped after all trainings under way were kept. meter: of energy, for trainings of one process.
    """
    records = list(earlier)
    watcher.total(_steps_ahead(config, plan, earlier))
    seeds = range(config.seed, config.seed + config.replicates)
    if tasks is None:
        queue = Queue(
            {
                seed: rounds(plan, seed, config.device, done_so_far(folder, config.device, seed, earlier, plan.model))
                for seed in seeds
            }
        )
    else:
        finished = set(map(name_of_record, earlier))
        left = [task for task in tasks if name_of(task) not in finished]
        queue = Queue({seed: _at_once([task for task in left if task.seed == seed]) for seed in seeds})
    way = Way(config, plan, folder, watcher, stopping, meter)
    with closing(_driven(way, queue)) as results:  # workers end with it, whatever happens
        for task, result, spent in results:
            item = record(
                result, replicate=task.seed - config.seed, seed=task.seed, metric=config.metric, **spent._asdict()
            )
            save_training(folder, config, task.seed, result, item)
            records.append(item)
            drop_checkpoints(place_of(folder, task))
            watcher.end(task, item)
    records = in_order(records, config.control)
    write_outcome(folder, config, records)
    return records


def _at_once(tasks: list[Task]) -> Generator[list[Task], list[Round], None]:
    if tasks:
        yield tasks


def check_ray(config: Config) -> None:
    """Raise UserError where Ray is asked for and missing, or its cluster doesn't answer."""
    if config.on != "local" and importlib.util.find_spec("ray") is None:
        raise UserError("--on: ray needs the package ray (pip install 'lthfunc[ray]')")
    if config.on.startswith("ray://"):
        host, _, port = config.on.removeprefix("ray://").rpartition(":")
        try:
            socket.create_connection((host, int(port)), _REACH).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--on: {config.on!r} cannot be reached ({error})") from error
        from lthfunc.scheduling.ray import join_cluster  # which needs an extra

        join_cluster(config.on)  # now, before anything is written; it stays so until this process ends


def jobs_of(config: Config, plan: Plan) -> int:
    """Trainings to run side by side: `--jobs`, or as many as there are.

    On a CPU no more than its cores can hold, and one after the other in a run of few steps that needs processes, which
    would end before they had started.
    """
    trainings = trainings_at_once(config)
    if plan.trainer.collectives.world_size > 1:  # all of which are on one training
        return 1
    if config.compact and config.device.startswith("cuda"):  # of different sizes, so no one program
        return 1
    if config.jobs is not None:
        return min(config.jobs, trainings)
    if config.device.startswith("cuda"):
        return trainings
    if not can_share_a_process(config, plan) and _steps_ahead(config, plan, []) < _PROCESSES_FROM_STEPS:
        return 1
    return max(1, min(trainings, usable_cores() // (config.threads or 1)))


def _driven(way: Way, queue: Queue) -> Generator[Result]:
    """On a GPU several trainings are one vmapped program; on a CPU, where that gains nothing, threads or processes."""
    config, plan = way.config, way.plan
    if config.on != "local" and queue.ready:
        from lthfunc.scheduling.ray import RayPool  # which needs an extra

        return by_pool(RayPool(way), way, queue)
    jobs = jobs_of(config, plan)
    if jobs == 1 or not queue.ready:
        return in_turn(way, queue)
    if config.device.startswith("cuda"):
        return side_by_side(way, queue, width_on(plan, jobs, config.device, asked=config.jobs is not None))
    pool = Threads(way, jobs) if can_share_a_process(config, plan) else Processes(way, jobs)
    return by_pool(pool, way, queue)


def _steps_ahead(config: Config, plan: Plan, earlier: list[Record]) -> int:
    done = set(map(name_of_record, earlier))
    return sum(
        plan.steps_of(number, variant)
        for replicate in range(config.replicates)
        for number in range(plan.rounds + 1)
        for variant in (TICKET, *(plan.controls if number else ()))
        if (config.seed + replicate, number, variant) not in done
    )
