"""``lthfunc connectivity``: from which step on a training is stable to the order of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import UserError
from lthfunc.experiments.config import SETTINGS, Config, to_mapping

from . import options as o
from .console import say
from .experiment import settings_of


@o.with_settings("connectivity")
def connectivity(
    *,
    at: Annotated[
        list[int] | None,
        typer.Option(
            "--at", parser=o.whole, metavar="K", help="Step to spawn two copies at; repeatable. \\[default: 0]"
        ),
    ] = None,
    points: Annotated[
        int, typer.Option("--points", parser=o.whole, metavar="N", help="Networks to measure between the copies.")
    ] = 11,
    run: Annotated[
        str | None,
        typer.Option("--run", metavar="RUN", help="Take the settings of this run, and keep what is found in it."),
    ] = None,
    given: o.Given,
    recipe: o.Recipe = None,
    config: o.ConfigFile = None,
    trust: o.Trust = False,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw errors and barriers here.")] = None,
    json: o.Json = False,
) -> None:
    """Train two copies from step K with different data orders, and measure the error on the line between them.

    A network without a barrier on it is stable from step K on (Frankle et al. 2020).
    """
    if run is None:
        settings = settings_of("train", given, recipe, config, trust=trust)
    else:
        others = [name for name, value in (("recipe", recipe), ("config", config)) if value is not None]
        settings = _settings_of_run(Path(run), given, others, trust=trust)
    _run(settings, at or [0], points, plot, run, wants_json=json)


def _settings_of_run(run: Path, given: o.Given, others: list[str], *, trust: bool) -> Config:
    """A run's settings, without its pruning. Raises UserError where others are typed that say what it is."""
    from dataclasses import replace

    from lthfunc.experiments.trust import check_trust
    from lthfunc.runs.folder import whole_run

    typed = [*(name for name in given if SETTINGS[name].is_difference), *others]
    if typed:
        raise UserError(f"--run and --{typed[0].replace('_', '-')}: the run's settings are taken; give one of them")
    config = whole_run(run).config
    check_trust(to_mapping(config), run, trusted=trust, typed=given)
    return replace(config, rounds=0, control=(), density=None, densities=None, energy=False, country=None, **given)


def _run(config: Config, at: list[int], points: int, plot: str | None, run: str | None, *, wants_json: bool) -> None:
    import json

    from lthfunc.experiments.connectivity import instability
    from lthfunc.experiments.plan import prepare
    from lthfunc.reports.connectivity import barrier_charts, barrier_rows, barrier_table
    from lthfunc.runs.measurements import keep_measurement
    from lthfunc.training.cpu_threads import using_threads
    from lthfunc.training.malloc import keep_freed_memory
    from lthfunc.trees.model import init

    from .console import aside, screen
    from .decoding import decoding
    from .stopping import terminable

    with decoding() as observe:
        prepared = prepare(config, observe)
    config, plan = prepared.config, prepared.plan
    keep_freed_memory()
    records: list[dict[str, Any]] = []
    try:
        with (
            terminable() as stop,
            using_threads(config.threads),
            aside().status("training copies") as status,
        ):
            for seed in range(config.seed, config.seed + config.replicates):
                status.update(f"seed {seed}: training to {len(at)} points and two copies from each")
                start = init(plan.model, seed, config.device)
                found = instability(plan.model, plan.trainer, start, at, steps=plan.steps, seed=seed, points=points)
                records += [
                    {
                        "seed": seed,
                        "k": item.k,
                        "barrier": item.line.barrier,
                        "alphas": item.line.alphas.tolist(),
                        "error": item.line.error.tolist(),
                        "loss": item.line.loss.tolist(),
                    }
                    for item in found
                ]
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(stop.code) from None
    title = f"{config.arch} on {config.dataset}, {plan.steps:,} steps"
    if plot:
        from lthfunc.reports.matplotlib_figures import save, side_by_side  # matplotlib takes half a second

        save(side_by_side(barrier_charts(records), title, legends=[True, False]), Path(plot))
    if run is not None:
        keep_measurement(Path(run), "connectivity", config.device, {"steps": plan.steps, "results": records})
    if wants_json:
        print(json.dumps({"config": to_mapping(config), "steps": plan.steps, "results": records}, indent=2))
        return
    screen().print(title, highlight=False)
    screen().print(barrier_table(barrier_rows(records)))
