"""``lthfunc connectivity``: the step from which on training is stable to the order of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import SETTINGS, Config, to_mapping
from lthfunc.printable import counted

from . import options as o
from .console import put_json, say, screen
from .experiment import settings_of


@o.with_settings("connectivity")
def connectivity(
    *,
    at: Annotated[
        list[int] | None,
        o.whole_number("--at", "Step at which to make two copies; repeatable. \\[default: 0]", "K"),
    ] = None,
    points: Annotated[int, o.whole_number("--points", "Number of networks to evaluate between the copies.")] = 11,
    run: Annotated[
        str | None, o.option("--run", "Use the settings of this run, and save the results in it.", "RUN")
    ] = None,
    sources: o.Sources,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Find the step from which training is stable: two orders of the data then lead to one solution.

    Two copies are trained from step K with different orders of the data, and the error is measured on the line between
    them. Where it doesn't rise there (has no barrier), training is stable from step K on (Frankle et al. 2020).
    """
    if points < 3:
        raise invalid("--points", points, "a whole number of at least 3")
    settings = settings_of("train", sources) if run is None else _settings_of_run(Path(run), sources)
    _run(settings, at or [0], points, plot, run, wants_json=json)


def _settings_of_run(run: Path, sources: o.Sources) -> Config:
    """A run's settings, without its pruning. Raises UserError if settings of the training itself were typed as well."""
    from dataclasses import replace

    from lthfunc.experiments.resolve import resolved
    from lthfunc.experiments.trust import check_trust
    from lthfunc.runs.folder import whole_run

    given, recipe, path, trust = sources
    others = {name: value for name, value in (("recipe", recipe), ("config", path)) if value is not None}
    typed = [*(name for name in given if SETTINGS[name].is_difference), *others]
    if typed:
        raise UserError(f"--run and --{typed[0].replace('_', '-')}: the run's settings are used; give one of them")
    config = whole_run(run).config
    check_trust(to_mapping(config), run, trusted=trust, typed=given)
    plain = {"rounds": 0, "control": (), "density": None, "densities": None, "jobs": None, "executor": "local"}
    return resolved(replace(config, **{**plain, "energy": False, "country": None, **given}))


def _run(config: Config, at: list[int], points: int, plot: Path | None, run: str | None, *, wants_json: bool) -> None:
    from contextlib import closing

    from lthfunc.experiments.connectivity import Finished, check_points, measured, segments
    from lthfunc.experiments.metrics import metric_scale
    from lthfunc.experiments.records import search_energy
    from lthfunc.reports.connectivity import barrier_charts, barrier_rows, barrier_table
    from lthfunc.runs.measurements import keep_measurement
    from lthfunc.scheduling.connectivity import SEGMENTS
    from lthfunc.scheduling.execute import results_of
    from lthfunc.scheduling.queue import Execution, Queue
    from lthfunc.trees.model import init

    from .progress import watching_tasks
    from .training import prepare_run, session

    prepared = prepare_run(config, lambda prepared: check_points(at, 0, prepared.plan.steps))
    config, plan = prepared.config, prepared.plan
    seeds = range(config.seed, config.seed + config.replicates)
    count = len(seeds) * (3 * len(set(at)) - (0 in at))
    found: dict[tuple[int, int], dict[str, Any]] = {}
    kwh = 0.0
    with session(config, None) as (stop, meter), watching_tasks(count, _line) as watcher:
        starts = {seed: init(plan.model, seed, config.device) for seed in seeds}
        queue = Queue({seed: segments(start, at, steps=plan.steps, seed=seed) for seed, start in starts.items()})
        run_ = Execution(config, plan, None, stop, watcher, SEGMENTS, meter)

        def finished() -> Finished:
            nonlocal kwh
            with closing(results_of(run_, queue, config.jobs or 1)) as results:
                for task, value, cost in results:
                    watcher.end(task, cost._asdict())
                    kwh += 0.0 if cost.energy is None else search_energy(cost._asdict())
                    yield value

        lower = metric_scale(config.metric).lower_is_better
        for seed, each in measured(plan.model, plan.trainer, finished(), points, lower_is_better=lower):
            line = {name: getattr(each.line, name).tolist() for name in ("alphas", "error", "loss")}
            about = {"seed": seed, "k": each.k, "metric": config.metric, "barrier": each.line.barrier}
            found[seed, each.k] = {**about, **line}
    records = [found[seed, k] for seed in seeds for k in sorted(at)]
    if config.energy:
        say(f"energy: {1000 * kwh:.2f} Wh for {counted(count, 'training')}")
    title = f"{config.arch} on {config.dataset}, {plan.steps:,} steps"
    if plot:
        from lthfunc.reports.matplotlib_figures import panels, save  # matplotlib takes half a second

        save(panels(barrier_charts(records), title), plot)
    if run is not None:
        keep_measurement(Path(run), "connectivity", config.device, {"steps": plan.steps, "results": records})
    if wants_json:
        put_json({"config": to_mapping(config), "steps": plan.steps, "results": records})
        return
    screen().print(title, highlight=False)
    screen().print(barrier_table(barrier_rows(records)))


def _line(task: Any, item: dict[str, Any]) -> str:
    return f"{task.description}: {item['seconds']:.1f} s"
