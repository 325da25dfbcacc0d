"""``lthfunc sweep``: one run with many settings, and the best of them."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import UserError, invalid, unknown

from . import options as o
from .console import put, put_json, put_words, say, screen
from .experiment import merged


@o.with_settings("prune")
def sweep(
    *,
    grid: Annotated[
        list[str] | None,
        o.option("--grid", "Values to try, in all combinations; repeatable.", "SETTING=A,B,…"),
    ] = None,
    search: Annotated[
        list[str] | None,
        o.option("--search", "Range in which Optuna suggests values, or A,B,…; repeatable.", "SETTING=LOW..HIGH"),
    ] = None,
    trials: Annotated[int | None, o.whole_number("--trials", "Number of trials with --search. \\[default: 20]")] = None,
    objective: Annotated[
        str,
        o.option(
            "--objective",
            "Network whose validation accuracy is maximised: the last ticket, the winning one, or dense.",
            "NAME",
            autocompletion=o.names("last", "winning", "dense"),
        ),
    ] = "last",
    out: Annotated[
        str | None,
        o.option(
            "--out", "Folder for the trials; the same command resumes there. \\[default: runs/sweep-…-TIME]", "FOLDER"
        ),
    ] = None,
    sources: o.Sources,
    json: o.Json = False,
) -> None:
    """Run `lthfunc prune` with many settings: a grid, or Optuna's search.

    Every trial is an ordinary run in a folder of its own; the best one has the highest validation accuracy. With
    --rounds 0, only the dense network is trained.
    """
    if bool(grid) == bool(search):
        raise UserError("--grid and --search: give one of them, e.g. --grid lr=0.01,0.001 --grid weight-decay=0,1e-4")
    if trials is not None and (not search or trials < 1):
        raise invalid("--trials", trials, "a whole number of at least 1, with --search")
    from lthfunc.experiments.resolve import resolved
    from lthfunc.experiments.sweeps import OBJECTIVES, config_of, corners, is_of_trial, space_of, suggested, trials_of

    if objective not in OBJECTIVES:
        raise unknown("--objective", objective, OBJECTIVES)
    shared = merged("prune", sources)
    resolved(shared)
    space: Any = space_of("--grid" if grid else "--search", grid or search or [], ranges=bool(search))
    planned = trials_of(space) if grid else None
    for values in planned if planned is not None else corners(space):
        config_of(shared, values)  # so mistakes are found before the first trial
    if search:
        suggested(space, shared.seed, [])
    from lthfunc.runs.folder import whole_run
    from lthfunc.runs.lock import locked
    from lthfunc.runs.sweep_results import Trial, add_trial, open_sweep, trial_folder, trial_of
    from lthfunc.scheduling.execute import check_ray
    from lthfunc.scheduling.ray import clustered
    from lthfunc.trees.atomic_io import safe_file_name

    from .running import trial_run
    from .training import prepare_run

    count = len(planned) if planned is not None else trials or 20
    name = safe_file_name(f"sweep-{shared.arch}-{shared.dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(out) if out else Path("runs") / name
    words = ["lthfunc", *sys.argv[1:]]
    again = shlex.join(words if "--out" in words else [*words, "--out", str(folder)])
    check_ray(shared)
    with nullcontext() if shared.executor == "local" else clustered(shared.executor):
        done = open_sweep(folder, shared, space, objective, "search" if search else "grid")
        with locked(folder), _resumable(again):
            while len(done) < count:
                number = len(done)
                if planned is not None:
                    values = planned[number]
                else:
                    known = [(each.values, None if each.worth is None else each.gain) for each in done]
                    values = suggested(space, shared.seed, known)
                told = " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                                for name, value in values.items())  # fmt: skip
                say(f"trial {number} of {count}: {told}")
                place = trial_folder(folder, number)
                fresh = not done and not place.exists()
                try:
                    trial_run(config_of(shared, values), place, again)
                    trial = trial_of(number, values, whole_run(place), objective)
                except UserError as error:
                    good = next((each.values for each in done if each.worth is not None), None)
                    ready = None if good is None else partial(prepare_run, config_of(shared, good))
                    if not is_of_trial(error, space, count - 1, ready):
                        if fresh:
                            shutil.rmtree(folder, ignore_errors=True)  # it is of what all share: leave nothing
                        raise
                    trial = Trial(number, values, None, reason=str(error).partition(";")[0])
                    say(f"trial {number} failed: {trial.reason}")
                add_trial(folder, trial)
                done.append(trial)
    _show(folder, done, list(space), shared.replicates, grid=planned is not None, wants_json=json)


@contextmanager
def _resumable(again: str) -> Iterator[None]:
    """Say how to resume a sweep that is interrupted between two trainings, which say so themselves."""
    try:
        yield
    except KeyboardInterrupt:
        say(f"stopped; finished trials are saved. Resume with: {again}")
        raise typer.Exit(128 + signal.SIGINT) from None


def _show(folder: Path, done: list[Any], names: list[str], replicates: int, *, grid: bool, wants_json: bool) -> None:
    from lthfunc.reports.matplotlib_figures import printed, save
    from lthfunc.reports.sweeps import best_of, trial_pictures, trial_table
    from lthfunc.reports.tables import with_unit
    from lthfunc.runs.folder import whole_run
    from lthfunc.runs.sweep_results import as_values, trial_folder

    from .remote_runs import named
    from .results import show_suggestions, suggestions

    pictures = []
    for picture in trial_pictures(done, names, grid=grid):
        save(printed(picture), folder / f"{picture.key}.png")
        pictures.append(folder / f"{picture.key}.png")
    best = best_of(done)
    if wants_json:
        trials = [as_values(each) for each in done]
        put_json({"folder": named(folder), "best": best and best.number, "trials": trials})
    else:
        put()
        screen().print(trial_table(done, replicates))
        put()
    if best is None or best.worth is None:
        raise UserError(f"{named(folder)}: every trial failed")
    if wants_json:
        return
    scale = best.scale
    reached = with_unit(best.worth, replicates, scale)
    most = "lowest" if scale.lower_is_better else "highest"
    put_words(f"Best: trial {best.number}, whose validation {scale.word} ({reached}) is the {most} of {len(done)}.")
    put(f"\nFiles in {named(folder)}:")
    put(f"  trial{best.number:03d}/ …  a run for each trial")
    for path in pictures:
        put(f"  {path.name}  picture")
    run = trial_folder(folder, best.number)
    show_suggestions(suggestions(whole_run(run), run))
