"""Trainings of a command: preparation, progress, metering, tracking, and stopping on request."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from lthfunc.catalog.methods import METHODS, method_entry
from lthfunc.catalog.pruning import ALLOCATIONS
from lthfunc.data.data_warnings import find_warnings
from lthfunc.distributed.collectives import current_collectives
from lthfunc.energy.meter import Meter, check_meter, metering
from lthfunc.errors import DivergedError, LostRankError, failing_as_options
from lthfunc.experiments.config import OPTIONS, Config, filled, first_round, to_mapping, trainings_of
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.plan import PreparedPlan, prepare
from lthfunc.experiments.records import Record
from lthfunc.experiments.trust import places_in, remember_code
from lthfunc.printable import counted
from lthfunc.runs.folder import TRAIN
from lthfunc.scheduling.execute import check_ray, execute, jobs_of
from lthfunc.scheduling.progress import Tracker, broadcasting, outlook_of
from lthfunc.scheduling.queue import Execution
from lthfunc.scheduling.ranks import agree_on_plan
from lthfunc.sparse.kernels.build import load_kernels
from lthfunc.tracking.trackers import check_trackers, tracking
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.malloc import keep_freed_memory
from lthfunc.training.results import Stopped

from .console import aside, put_words, say
from .decoding import decoding
from .progress import watching
from .remote_runs import named, sent_on
from .stopping import Stop, stopping


def prepare_run(config: Config, check: Callable[[PreparedPlan], object] | None = None) -> PreparedPlan:
    """The plan of a run, after checking that everything it needs is available. Raises UserError.

    check: raises UserError for what else is wrong with a plan, before a compiler is waited for.
    """
    check_ray(config)
    check_trackers(config)
    if config.energy:
        check_meter(config.country)
    collectives = current_collectives()
    with decoding(f"preparing {config.arch} on {config.dataset}") as observe:
        prepared = prepare(config, observe, collectives)
    remember_code(to_mapping(config))
    for hint in find_warnings(prepared.plan.trainer.data):
        say(f"--dataset: {hint}")
    if collectives.world_size > 1:
        agree_on_plan(prepared.config, prepared.plan)
    if check is not None:
        check(prepared)
    build_kernels_for(prepared.config)
    return prepared


def build_kernels_for(config: Config) -> None:
    """Build what a run on the sparse engine needs, once nothing else can be wrong with it, and before it is shown."""
    if config.engine.startswith("sparse"):
        load_kernels()


@failing_as_options(OPTIONS)
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
    jobs = jobs_of(config, plan)
    tracker = Tracker(outlook_of(config, plan, jobs, earlier))
    for line in (*_headline(prepared, command, folder, jobs), *([note] if note else [])):
        put_words(line, console=aside())
    with (
        session(config, again, _resume(folder, config), aloud=not aside().is_terminal) as (stop, meter),
        watching(aside(), f"{config.arch} on {config.dataset}", trainings_of(config), tracker, earlier, stop) as live,
        tracking(config, folder) as trackers,
        broadcasting(folder, tracker, [live, *trackers, *sent_on(folder)]) as watcher,
    ):
        return execute(Execution(config, plan, folder, stop, watcher, meter=meter, again=again), earlier, jobs, tasks)


@contextmanager
def session(
    config: Config, again: str | None, resume: str | None = None, *, aloud: bool = True
) -> Iterator[tuple[Stop, Meter | None]]:
    """Context of trainings that can be interrupted, with their threads and, if requested, a meter.

    again: the command that resumes them; resume: that of this run alone, if another. aloud: whether a request to stop
    is confirmed at once, since no display does.
    """
    keep_freed_memory()
    with stopping(aloud=aloud) as stop:
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


def _headline(prepared: PreparedPlan, command: str, folder: Path, jobs: int) -> Iterator[str]:
    """What will be done, in a few lines."""
    config, plan = prepared.config, prepared.plan
    data = plan.trainer.data
    yield (
        f"{config.arch} on {config.dataset}: {data.examples:,} training, {len(data.val.x):,} validation and "
        f"{len(data.test.x):,} test examples"
    )
    seeds = f" with {config.replicates} seeds" if config.replicates > 1 else ""
    trainings = f"{counted(trainings_of(config), 'training')} of {counted(plan.steps, 'step')}"
    yield f"{trainings}{seeds}: {_rounds(config, command)}"
    at_once = f", {jobs} trainings side by side" if jobs > 1 else ""
    if (ranks := plan.trainer.work.collectives.world_size) > 1:
        at_once = f", on {ranks} ranks"
    if config.executor != "local":
        at_once = f", on {config.executor}"
    yield f"on {config.device}, engine {config.engine}{at_once}; results in {named(folder)}"


def _rounds(config: Config, command: str) -> str:
    dense = "the dense network" + (", which is trained already" if config.from_trained else "")
    rounds, allocate = filled(config.rounds), filled(config.allocate)
    if command == TRAIN or not rounds:
        return dense
    controls = f", and controls: {', '.join(config.control)}" if config.control else ""
    if config.method not in METHODS:  # a user's, which may prune in any way
        before = f"{dense}, then " if first_round(config) == 0 else ""
        return f"{before}{counted(rounds, 'round')} by {config.method}{_until(config, rounds)}{controls}"
    entry = method_entry(config.method)
    about = f"{config.method} ({METHODS.about(config.method)}){_until(config, rounds)}"
    if entry.at_init:
        return f"{dense}, then {about}{controls}" if config.dense else f"{about}{controls}"
    if "blocks" in entry.takes:  # which prunes by neither score nor allocation
        return f"{dense}, then {about}{controls}"
    per_round = f"{100 * config.rate:g} % of the remaining weights" if config.densities is None else "weights"
    prunes = "that prunes" if rounds == 1 else "that each prune"
    return (
        f"{dense}, then {counted(rounds, 'round')} {prunes} {per_round} by {config.score}, "
        f"{allocate} ({ALLOCATIONS.about(allocate)}){_until(config, rounds)}{controls}"
    )


def _until(config: Config, rounds: int) -> str:
    if config.densities is not None:
        return f", to densities {config.densities}"
    return f", to a density of {100 * (1 - config.rate) ** rounds:.1f} %"
