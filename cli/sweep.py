"""``lthfunc sweep``: one run with many settings, and the best of them."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from lthfunc.errors import DamagedError, UserError, invalid, unknown

from . import options as o
from .console import put, put_json, say, screen
from .experiment import merged, prune


def sweep(
    context: typer.Context,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="SETTING=A,B,…", help="Values to try, in all combinations; repeatable."),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            "--search",
            metavar="SETTING=LOW..HIGH",
            help="Let Optuna suggest values in this range, or among A,B,…; repeatable.",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", parser=o.whole, metavar="N", help="Number of trials with --search. \\[default: 20]"),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="Network whose validation accuracy is maximised: the last ticket, the winning one, or dense.",
            autocompletion=o.names("last", "winning", "dense"),
        ),
    ] = "last",
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            help="Folder for the trials; the same command resumes there. \\[default: runs/sweep-NETWORK-DATASET-TIME]",
        ),
    ] = None,
    json: o.Json = False,
) -> None:
    """Run `lthfunc prune` with many settings: a grid, or Optuna's search. Also takes all options of prune.

    Every trial is an ordinary run in a folder of its own; the best one has the highest validation accuracy. With
    --rounds 0, only the dense network is trained.
    """
    if bool(grid) == bool(search):
        raise UserError("--grid and --search: give one of them, e.g. --grid lr=0.01,0.001 --grid weight-decay=0,1e-4")
    if trials is not None and (not search or trials < 1):
        raise invalid("--trials", trials, "a whole number of at least 1, with --search")
    given, recipe, path, trust = _of_prune(context.args)
    from lthfunc.experiments.resolve import resolved
    from lthfunc.experiments.sweeps import OBJECTIVES, config_of, corners, space_of, trials_of

    if objective not in OBJECTIVES:
        raise unknown("--objective", objective, OBJECTIVES)
    config = merged("prune", given, recipe, path, trust=trust)
    resolved(config)
    space = space_of("--grid" if grid else "--search", grid or search or [], ranges=bool(search))
    lists: Any = space
    planned = trials_of(lists) if grid else None
    for values in planned if planned is not None else corners(space):
        config_of(config, values)  # so mistakes are found before the first trial
    _sweep(config, space, planned, trials or 20, objective, out, wants_json=json)


def _of_prune(arguments: list[str]) -> tuple[o.Given, str | None, str | None, bool]:
    """The options of `lthfunc prune` among these arguments: settings, recipe, file, trust. Raises as it does."""
    app = typer.Typer()
    app.command("prune", context_settings={"help_option_names": []})(prune)
    with get_command(app).make_context("sweep", list(arguments)) as context:
        values = dict(context.params)
    given, rest = o.given_of(values)
    return given, rest["recipe"], rest["config"], rest["trust"]


def _sweep(
    config: Any, space: Any, planned: list[dict[str, Any]] | None, trials: int, objective: str, out: str | None, *,
    wants_json: bool,
) -> None:  # fmt: skip
    from lthfunc.experiments.sweeps import Suggester, config_of
    from lthfunc.runs.folder import whole_run
    from lthfunc.runs.lock import locked
    from lthfunc.runs.sweep_results import Trial, add_trial, open_sweep, trial_folder, trial_of
    from lthfunc.scheduling.execute import check_ray
    from lthfunc.scheduling.ray import clustered
    from lthfunc.trees.atomic_io import safe_file_name

    from .running import trial_run

    suggester = None if planned is not None else Suggester(space, config.seed)
    count = trials if planned is None else len(planned)
    name = safe_file_name(f"sweep-{config.arch}-{config.dataset}-{time.strftime('%Y%m%d-%H%M%S')}")
    folder = Path(out) if out else Path("runs") / name
    check_ray(config)
    with nullcontext() if config.executor == "local" else clustered(config.executor):
        done = open_sweep(folder, config, space, objective, "grid" if suggester is None else "search")
        with locked(folder):
            while len(done) < count:
                number = len(done)
                if planned is not None:
                    values = planned[number]
                else:
                    assert suggester is not None
                    known = [(each.values, None if each.worth is None else each.worth.mean) for each in done]
                    values = suggester.next(known)
                told = " ".join(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
                                for name, value in values.items())  # fmt: skip
                say(f"trial {number} of {count}: {told}")
                try:
                    place = trial_folder(folder, number)
                    trial_run(config_of(config, values), place, _command(folder))
                    trial = trial_of(number, values, whole_run(place), objective)
                except UserError as error:
                    if isinstance(error, DamagedError):
                        raise
                    if not done:  # the first trial fails because of shared settings, and leaves nothing
                        shutil.rmtree(folder, ignore_errors=True)
                        raise
                    trial = Trial(number, values, None, reason=str(error).partition(";")[0])
                add_trial(folder, trial)
                done.append(trial)
    _show(folder, done, list(space), config.replicates, grid=planned is not None, wants_json=wants_json)


def _command(folder: Path) -> str:
    """The command that was typed, with the folder added, so that it resumes there."""
    words = ["lthfunc", *sys.argv[1:]]
    return shlex.join(words if "--out" in words else [*words, "--out", str(folder)])


def _show(folder: Path, done: list[Any], names: list[str], replicates: int, *, grid: bool, wants_json: bool) -> None:
    from lthfunc.reports.matplotlib_figures import printed, save
    from lthfunc.reports.sweeps import best_of, trial_pictures, trial_table
    from lthfunc.runs.sweep_results import as_values, trial_folder

    from .remote_runs import named

    pictures = []
    for picture in trial_pictures(done, names, grid=grid):
        save(printed(picture), folder / f"{picture.key}.png")
        pictures.append(folder / f"{picture.key}.png")
    best = best_of(done)
    if wants_json:
        trials = [as_values(each) for each in done]
        put_json({"folder": named(folder), "best": best and best.number, "trials": trials})
        return
    put()
    screen().print(trial_table(done, replicates))
    put()
    if best is None:
        put("Every trial failed.")
    else:
        run = trial_folder(folder, best.number)
        config = shlex.quote(str(run / "config.toml"))
        put(f"best      trial {best.number}; repeat it with: lthfunc prune --config {config}")
    for path in pictures:
        put(f"picture   {named(path)}")
    put(f"all       {named(folder)}")
