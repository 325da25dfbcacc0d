"""A run from settings to pictures: the imperative shell around experiments."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer
from rich.console import Console

from lthfunc.errors import invalid
from lthfunc.experiments.config import Config, from_mapping, is_own, to_mapping
from lthfunc.experiments.iterative import Task
from lthfunc.experiments.plan import Prepared, prepare
from lthfunc.experiments.records import Record, summarize
from lthfunc.experiments.resolve import resolved
from lthfunc.runs.branching import branch, check_branch, transfers
from lthfunc.runs.execute import execute, jobs_of
from lthfunc.runs.folder import METRICS, PRUNE, TRAIN, TRANSFER, check_free, create, read_run
from lthfunc.runs.lines import drop_partial_line
from lthfunc.training.memory import hold_memory
from lthfunc.training.threads import using_threads

from .decoding import decoding
from .options import layer_rates, named_values
from .progress import watching
from .screens import as_json, show_results


def new_run(config: Config, command: str, out: str | None, *, wants_json: bool) -> None:
    """Check everything, make the folder, run. Raises UserError before anything is written."""
    folder = Path(out) if out else _fresh_folder(config)
    check_free(folder)
    prepared = _prepared(config)
    create(folder, prepared.config, command, data=prepared.plan.trainer.data)
    _run(prepared, command, folder, [], wants_json)


def resume_run(run: str, *, wants_json: bool) -> None:
    """Go on with an interrupted run; a finished one has its table and pictures made again."""
    folder = Path(run)
    about, config, records = read_run(folder)
    prepared = _prepared(config)
    drop_partial_line(folder / METRICS)
    tasks = transfers(Path(about["source"]), prepared.plan, prepared.config) if "source" in about else None
    _run(prepared, about["command"], folder, records, wants_json, tasks)


def branch_run(run: Path, number: int, given: dict[str, Any], out: str | None, *, wants_json: bool) -> None:
    """Go on from a round of a finished run with other settings, in a folder of its own."""
    _, theirs, _ = read_run(run)
    # The run's own rate stays, unless a rate or another number of rounds takes the place of densities by name.
    by_name = {"densities": None} if given["rate"] is not None or given["rounds"] is not None else {}
    config = _changed(theirs, {"density": None, **by_name}, given)
    folder = Path(out) if out else _fresh_folder(config)
    check_free(folder)
    prepared = _prepared(config)
    check_branch(run, prepared.plan, number)
    _run(prepared, PRUNE, folder, branch(run, folder, number, prepared), wants_json)


def transfer_run(run: Path, given: dict[str, Any], out: str | None, *, wants_json: bool) -> None:
    """Train the tickets of a finished run on another data set, in a folder of its own."""
    _, theirs, records = read_run(run)
    fresh = {"epochs": None, "steps": None, "augment": None, "eval_every": None, "threads": None, "engine": None}
    pruned = {"rounds": max((item["round"] for item in records), default=0), "rewind": "init", "control": None}
    task = {name: None for name in ("loss", "metric") if not is_own(getattr(theirs, name))}
    config = _changed(theirs, {**fresh, **pruned, **task, "dataset_option": None}, given)
    folder = Path(out) if out else _fresh_folder(config)
    check_free(folder)
    prepared = _prepared(config)
    tasks = transfers(run, prepared.plan, prepared.config)
    create(folder, prepared.config, TRANSFER, run, data=prepared.plan.trainer.data)
    _run(prepared, TRANSFER, folder, [], wants_json, tasks)


def _prepared(config: Config) -> Prepared:
    with decoding() as observe:
        return prepare(config, observe)


def _changed(config: Config, first: dict[str, Any], given: dict[str, Any]) -> Config:
    """A run's settings with some of them replaced, or (None) left to their defaults; then with what was typed."""
    values = {
        **to_mapping(config),
        **first,
        **{name: value for name, value in given.items() if value not in (None, [])},
    }
    if given.get("layer_rate"):
        values["layer_rate"] = layer_rates(given["layer_rate"])
    if given.get("dataset_option"):
        values["dataset_option"] = named_values("--dataset-option", given["dataset_option"])
    for name, other in (("steps", "epochs"), ("epochs", "steps")):
        if given.get(name) is not None:
            values[other] = None
    return resolved(from_mapping(values))


def _run(
    prepared: Prepared,
    command: str,
    folder: Path,
    earlier: list[Record],
    wants_json: bool,
    tasks: list[Task] | None = None,
) -> None:
    config, plan, note = prepared
    err = Console(stderr=True)
    hold_memory()
    _say(_headline(prepared, command))
    if note:
        _say(note)
    try:
        with using_threads(config.threads), terminable(), watching(err, plan) as watcher:
            records = execute(config, plan, folder, watcher, earlier, tasks)
    except KeyboardInterrupt:
        _say(f"interrupted; finished trainings are safe. Go on with: lthfunc resume {folder}")
        raise typer.Exit(130) from None
    from lthfunc.reports.plots import draw  # matplotlib takes half a second, which training need not wait for

    pictures = draw(folder, records, f"{config.arch} on {config.dataset}")
    rows = summarize(records)
    if wants_json:
        print(json.dumps(as_json(folder, config, rows), indent=2))
    else:
        show_results(rows, folder, pictures, ticket=command != TRAIN and config.rounds > 0)


def _headline(prepared: Prepared, command: str) -> str:
    config, plan, _ = prepared
    data = plan.trainer.data
    side_by_side = f", {jobs} side by side" if (jobs := jobs_of(config, plan)) > 1 else ""
    how = f"{'compiled' if config.engine == 'compile' else config.engine}{side_by_side}"
    rounds = f"{config.rounds} rounds {_how_far(config)} ({config.allocate}), " if command != TRAIN else ""
    seeds = f", {config.replicates} seeds" if config.replicates > 1 else ""
    return (
        f"{config.arch} on {config.dataset} ({len(data.train.x):,} training, {len(data.val.x):,} validation, "
        f"{len(data.test.x):,} test): {rounds}{plan.steps:,} steps each{seeds}, {config.device}, {how}"
    )


def _how_far(config: Config) -> str:
    return f"at rate {config.rate:g}" if config.densities is None else f"to {config.densities}"


def _fresh_folder(config: Config) -> Path:
    # A network of the user's own, package.module:function, gives its function's name; a path its last part.
    arch, dataset = (Path(name.rpartition(":")[2]).name for name in (config.arch, config.dataset))
    base = Path("runs") / f"{arch}-{dataset}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder, number = base, 2
    while folder.exists():  # two runs in one second
        folder, number = base.with_name(f"{base.name}-{number}"), number + 1
    return folder


def make_folder(option: str, folder: Path) -> None:
    """Make a folder for results that come one by one. Raises UserError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise invalid(option, str(folder), f"a folder that can be made ({error.strerror})") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def terminable() -> Iterator[None]:
    """A request to terminate (a cluster's, say) ends a run as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
