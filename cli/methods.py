"""``lthfunc methods``: published methods at some densities, each a run, in one table and one picture."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from lthfunc.catalog.methods import METHODS, method_entry
from lthfunc.errors import UserError, invalid
from lthfunc.experiments.resolve import listed, resolved
from lthfunc.printable import counted

from . import options as o
from .console import busy, say
from .experiment import merged

if TYPE_CHECKING:
    from lthfunc.experiments.config import Config
    from lthfunc.experiments.plan import PreparedPlan
    from lthfunc.experiments.records import Record
    from lthfunc.experiments.studies import StudyPlans, StudyRun
    from lthfunc.scheduling.studies import RunUnderWay


@o.with_settings("methods")
def methods(
    *,
    method: Annotated[
        list[str] | None,
        o.option(
            "--method", "One of `lthfunc methods --list`; repeatable. \\[default: all]", "NAME",
            autocompletion=METHODS.complete,
        ),
    ] = None,
    list_: Annotated[bool, o.option("--list", "List the methods.")] = False,
    sources: o.Sources,
    out: Annotated[
        str | None,
        o.option(
            "--out", "Folder for the runs, one for each method or each of its densities; the same command, also with "
            "more methods or seeds, resumes there. \\[default: runs/methods-…-TIME]", "FOLDER",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        o.option(
            "--baseline", "The method that the others are tested against. \\[default: imp, or else the best]",
            "METHOD",
        ),
    ] = None,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:  # fmt: skip
    """Prune and train a network by each published method, and compare them at one density or several.

    Each method, or each of its densities, is a run in a folder of its own, as of `lthfunc prune --method`. Density:
    the share of the weights that remain.
    """
    if list_:
        from .listings import listing

        known = [(name, METHODS.about(name), method_entry(name).source) for name in METHODS.known()]
        listing(("name", "what it is", "source"), known, spare=("source",))
        return
    shared = merged("methods", sources)
    resolved(shared, used=("cycles", "score_rounds"))  # checked; some of the methods use these
    asked, densities = _asked(method or []), _densities(shared)
    with busy("loading PyTorch"):
        from lthfunc.energy.meter import check_meter
        from lthfunc.experiments.studies import meaningful_runs
        from lthfunc.scheduling.execute import check_ray

    runs, left = meaningful_runs(shared, asked, densities)
    check_ray(shared)
    if shared.energy:
        check_meter(shared.country)
    folder = _folder(shared, out)
    plans, runs, later = _prepared(runs, folder, asked=bool(asked))
    left |= later
    if left:
        say("; ".join(f"{name} is left out: {why}" for name, why in left.items()))
    from .study_results import checked_baseline, show_study

    baseline = checked_baseline(baseline, [each.method for each in runs])
    words = ["lthfunc", *sys.argv[1:]]
    again = shlex.join(words if out else [*words, "--out", str(folder)])
    records = _run(runs, plans, folder, again)
    show_study(runs, plans, records, baseline, folder, plot, again, wants_json=json)


def _asked(methods: list[str]) -> list[str]:
    """The methods that were asked for. Raises UserError for one that is unknown, or asked for twice."""
    for each in methods:
        METHODS.check(each)
    if len({*methods}) < len(methods):
        raise invalid("--method", ", ".join(methods), "each method once")
    return methods


def _densities(shared: Config) -> list[float]:
    """The densities at which methods are compared, falling. Raises UserError without any."""
    if shared.densities is not None:
        return listed(shared.densities)
    if shared.density is None:
        raise UserError(
            "--density: missing (expected a density to compare methods at, e.g. --density 0.05; or --densities)"
        )
    return [shared.density]


def _folder(shared: Config, out: str | None) -> Path:
    """The folder that was named, or one after the network, the data set and the time. Raises UserError for a file."""
    from lthfunc.runs.studies import check_study_folder
    from lthfunc.trees.atomic_io import safe_file_name

    if out is not None and Path(out).is_file():
        raise invalid("--out", out, "a folder, not a file")
    name = safe_file_name(f"methods-{shared.arch}-{shared.dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(out) if out else Path("runs") / name
    check_study_folder(folder)
    return folder


def _prepared(runs: list[StudyRun], folder: Path, *, asked: bool) -> tuple[StudyPlans, list[StudyRun], dict[str, str]]:
    """(the plans of all runs, the runs that can be, why others can't). Raises UserError if one was asked for."""
    from lthfunc.data.data_warnings import find_warnings
    from lthfunc.experiments.config import to_mapping
    from lthfunc.experiments.studies import StudyPlans, decided_alike, runs_that_can_be
    from lthfunc.experiments.trust import remember_code
    from lthfunc.runs.studies import settings_there

    from .decoding import decoding

    first = runs[0].config
    with decoding(f"preparing {counted(len(runs), 'run')}: {first.arch} on {first.dataset}") as observe:
        alike, like = decided_alike([each.config for each in runs], observe)
        configs = {
            each.name: settings_there(folder / each.name, each.config, new)
            for each, new in zip(runs, alike, strict=True)
        }
        plans = StudyPlans(configs, like)
        able, left = runs_that_can_be(runs, plans, asked=asked)
    for each in able:
        remember_code(to_mapping(each.config))
    if like.note:
        say(like.note)
    for hint in find_warnings(like.plan.trainer.data):
        say(f"--dataset: {hint}")
    return plans, able, left


def _run(runs: list[StudyRun], plans: StudyPlans, folder: Path, again: str) -> dict[str, list[Record]]:
    """Run what is missing of all runs; returns their records. again: the command that resumes them."""
    from lthfunc.runs.lock import locked
    from lthfunc.scheduling.progress import AllWatchers
    from lthfunc.scheduling.queue import Execution
    from lthfunc.scheduling.studies import execute_study, jobs_of_study, study_workload, trainings_left

    from .progress import watching_tasks
    from .remote_runs import named, sent_on
    from .running import make_folder
    from .training import build_kernels_for, session

    for each in runs:
        build_kernels_for(each.config)
    make_folder("--out", folder)
    with ExitStack() as stack:
        stack.enter_context(locked(folder))
        begun = {each.name: _begun(stack, folder / each.name, plans.prepared(each.name)) for each in runs}
        config, missing = runs[0].config, trainings_left(begun)
        say(f"{counted(missing, 'training')} of {counted(len(runs), 'run')}; results in {named(folder)}")
        stop, meter = stack.enter_context(session(config, again))
        bar = stack.enter_context(watching_tasks(missing, _line))
        watcher = AllWatchers([bar, *sent_on(folder)])
        workload = study_workload({each.name: each.config for each in runs})
        run = Execution(config, plans, folder, stop, watcher, workload, meter, again)
        return execute_study(run, begun, jobs_of_study(config, begun))


def _begun(stack: ExitStack, folder: Path, prepared: PreparedPlan) -> RunUnderWay:
    """Lock a run of the study, and begin or recover it."""
    from lthfunc.runs.folder import PRUNE, create
    from lthfunc.runs.lock import locked
    from lthfunc.runs.studies import continued_run
    from lthfunc.scheduling.studies import RunUnderWay

    from .running import make_folder

    config, plan = prepared.config, prepared.plan
    make_folder("--out", folder)
    stack.enter_context(locked(folder))
    records, said = continued_run(folder, config, lambda: create(folder, config, PRUNE, data=plan.trainer.data))
    for line in said:
        say(f"damaged: {folder.name}: {line}")
    return RunUnderWay(config, plan, records)


def _line(task: Any, item: dict[str, Any]) -> str:
    from lthfunc.experiments.records import scale_of_records

    figures = f"test {scale_of_records([item]).text(item['test_accuracy'])}, {item['seconds']:.1f} s"
    return f"{task.description}: density {100 * item['density']:.3g} %, {figures}"
