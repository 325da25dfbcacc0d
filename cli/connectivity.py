"""``lthfunc connectivity``: from which step on a training is stable to the order of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lthfunc.errors import UserError

from . import options as o
from .console import say
from .experiment import settings_of


def connectivity(
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
    arch: o.Arch = None,
    arch_option: o.ArchOption = None,
    weights: o.Weights = None,
    dataset: o.DataSet = None,
    dataset_option: o.DataSetOption = None,
    skip_broken: o.SkipBroken = None,
    data_dir: o.DataDir = None,
    recipe: o.Recipe = None,
    config: o.ConfigFile = None,
    epochs: o.Epochs = None,
    steps: o.Steps = None,
    batch_size: o.BatchSize = None,
    optimizer: o.OptimizerName = None,
    lr: o.Lr = None,
    lr_final: o.LrFinal = None,
    momentum: o.Momentum = None,
    weight_decay: o.WeightDecay = None,
    schedule: o.ScheduleName = None,
    warmup: o.Warmup = None,
    augment: o.Augment = None,
    loss: o.LossName = None,
    label_smoothing: o.LabelSmoothing = None,
    metric: o.MetricName = None,
    seed: o.Seed = None,
    replicates: o.Replicates = None,
    device: o.Device = None,
    engine: o.Engine = None,
    threads: o.Threads = None,
    trust: o.Trust = False,
    plot: Annotated[str | None, typer.Option("--plot", metavar="FILE", help="Draw errors and barriers here.")] = None,
    json: o.Json = False,
) -> None:
    """Train two copies from step K with different data orders, and measure the error on the line between them.

    A network without a barrier on it is stable from step K on (Frankle et al. 2020).
    """
    given: dict[str, Any] = dict(locals())
    for name in ("at", "points", "run", "plot", "json"):
        del given[name]
    settings = settings_of("train", given) if run is None else _settings_of_run(Path(run), given)
    _run(settings, at or [0], points, plot, run, wants_json=json)


def _settings_of_run(run: Path, given: dict[str, Any]) -> Any:
    """A run's settings, without its pruning. Raises UserError where others are typed."""
    from dataclasses import replace

    from lthfunc.experiments.config import to_mapping
    from lthfunc.experiments.trust import check_trust
    from lthfunc.runs.folder import whole_run

    free = ("data_dir", "threads", "trust")
    typed = [name for name, value in given.items() if name not in free and value not in (None, [])]
    if typed:
        raise UserError(f"--run and --{typed[0].replace('_', '-')}: the run's settings are taken; give one of them")
    config = whole_run(run).config
    named = {"data_dir"} if given["data_dir"] is not None else set()
    check_trust(to_mapping(config), run, trusted=given["trust"], typed=named)
    kept = {name: given[name] for name in ("data_dir", "threads") if given[name] is not None}
    return replace(config, rounds=0, control=(), density=None, densities=None, energy=False, country=None, **kept)


def _run(config: Any, at: list[int], points: int, plot: str | None, run: str | None, *, wants_json: bool) -> None:
    import json

    from lthfunc.experiments.config import to_mapping
    from lthfunc.experiments.connectivity import instability
    from lthfunc.experiments.plan import prepare
    from lthfunc.reports.connectivity import barrier_plot, barrier_rows, barrier_table
    from lthfunc.reports.figures import save
    from lthfunc.runs.measurements import keep_measurement
    from lthfunc.training.memory import hold_memory
    from lthfunc.training.threads import using_threads
    from lthfunc.trees.model import init

    from .console import aside, screen
    from .decoding import decoding
    from .stopping import terminable

    with decoding() as observe:
        prepared = prepare(config, observe)
    config, plan = prepared.config, prepared.plan
    hold_memory()
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
        save(barrier_plot(records, title), Path(plot))
    if run is not None:
        keep_measurement(Path(run), "connectivity", config.device, {"steps": plan.steps, "results": records})
    if wants_json:
        print(json.dumps({"config": to_mapping(config), "steps": plan.steps, "results": records}, indent=2))
        return
    screen().print(title, highlight=False)
    screen().print(barrier_table(barrier_rows(records)))
