"""Trainings of a command: preparation, progress, metering, tracking, and stopping on request."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from lthfunc.data.data_warnings import find_warnings
from lthfunc.distributed.collectives import current_collectives
from lthfunc.energy.meter import Meter, check_meter, metering
from lthfunc.errors import DivergedError, LostRankError
from lthfunc.experiments.config import Config, to_mapping
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.plan import PreparedPlan, prepare
from lthfunc.experiments.records import Record
from lthfunc.experiments.trust import places_in, remember_code
from lthfunc.printable import counted
from lthfunc.runs.folder import TRAIN
from lthfunc.scheduling.execute import check_ray, execute, jobs_of
from lthfunc.scheduling.progress import broadcasting
from lthfunc.scheduling.queue import Execution
from lthfunc.scheduling.ranks import agree_on_plan
from lthfunc.tracking.table import check_trackers, tracking
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.malloc import keep_freed_memory
from lthfunc.training.results import Stopped

from .console import aside, say
from .decoding import decoding
from .progress import watching
from .remote_runs import named, sent_on
from .stopping import Stop, stopping


def prepare_run(config: Config) -> PreparedPlan:
    """The plan of a run, after checking that everything it needs is available. Raises UserError."""
    check_ray(config)
    check_trackers(config)
    if config.energy:
        check_meter(config.country)
    collectives = current_collectives()
    with decoding() as observe:
        prepared = prepare(config, observe, collectives)
    remember_code(to_mapping(config))
    for hint in find_warnings(prepared.plan.trainer.data):
        say(f"--dataset: {hint}")
    if collectives.world_size > 1:
        agree_on_plan(prepared.config, prepared.plan)
    return prepared


def train_run(
    prepared: PreparedPlan,
    command: str,
    folder: Path,
    earlier: list[Record],
    tasks: list[Task] | None = None,
    again: str | None = None,
) -> list[Record]:
    """Run the missing trainings of a run. again: the command that resumes it."""
    config, plan, note, _ = prepared
    again = again or _resume(folder, config)
    say(_headline(prepared, command))
    if note:
        say(note)
    with (
        session(config, again, _resume(folder, config)) as (stop, meter),
        watching(aside(), plan) as live,
        tracking(config, folder) as trackers,
        broadcasting(folder, [live, *trackers, *sent_on(folder)]) as watcher,
    ):
        return execute(Execution(config, plan, folder, stop, watcher, meter=meter, again=again), earlier, tasks)


@contextmanager
def session(config: Config, again: str | None, resume: str | None = None) -> Iterator[tuple[Stop, Meter | None]]:
    """Context of trainings that can be interrupted, with their threads and, if requested, a meter.

    again: the command that resumes them; resume: that of this run alone, if another.
    """
    keep_freed_memory()
    with stopping() as stop:
        try:
            with using_threads(config.threads), _metered(config) as meter:
                yield stop, meter
        except (Stopped, KeyboardInterrupt) as error:
            saved = "everything is" if isinstance(error, Stopped) else "finished trainings and checkpoints are"
            say("stopped" if again is None else f"stopped; {saved} saved. Resume with: {again}")
            raise typer.Exit(stop.code) from None
        except LostRankError as error:
            raise LostRankError(f"{error}; resume with any number of ranks: {again}") from error
        except DivergedError as error:
            if again is None:
                raise
            skipping = f"{resume or again} --on-nonfinite skip"
            raise DivergedError(f"{error} (the state before it is saved; to skip such steps: {skipping})") from error


@contextmanager
def _metered(config: Config) -> Iterator[Meter | None]:
    """A context in which energy is measured, if requested; a line says how."""
    if not config.energy:
        yield None
        return
    with metering(config.device, config.country) as meter:
        say(f"energy: {meter.source.words}")
        yield meter


def _resume(folder: Path, config: Config) -> str:
    """The command that resumes a run."""
    return f"lthfunc resume {shlex.quote(named(folder))}" + (" --trust" if places_in(to_mapping(config)) else "")


def _headline(prepared: PreparedPlan, command: str) -> str:
    config, plan = prepared.config, prepared.plan
    data = plan.trainer.data
    side_by_side = f", {jobs} side by side" if (jobs := jobs_of(config, plan)) > 1 else ""
    if (ranks := plan.trainer.work.collectives.world_size) > 1:
        side_by_side = f", on {ranks} ranks"
    if config.executor != "local":
        side_by_side = f", on {config.executor}"
    how = f"{'compiled' if config.engine == 'compile' else config.engine}{side_by_side}"
    rounds = f"{counted(config.rounds, 'round')} {_how_far(config)} ({config.allocate}), " if command != TRAIN else ""
    seeds = f", {config.replicates} seeds" if config.replicates > 1 else ""
    return (
        f"{config.arch} on {config.dataset} ({len(data.train.x):,} training, {len(data.val.x):,} validation, "
        f"{len(data.test.x):,} test): {rounds}{counted(plan.steps, 'step')} each{seeds}, {config.device}, {how}"
    )


def _how_far(config: Config) -> str:
    return f"at rate {config.rate:g}" if config.densities is None else f"to {config.densities}"
