"""From settings to the context of methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lthfunc.catalog.courses import COURSES
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, filled
from lthfunc.experiments.courses.context import SYNFLOW_ROUNDS, MethodContext
from lthfunc.experiments.objective import make_optimizer, schedule_of
from lthfunc.experiments.plan import prepare
from lthfunc.registry import imported
from lthfunc.training.engines.table import Making
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.trainer import Trainer, with_work
from lthfunc.trees.model import Model


def check_methods(config: Config, methods: tuple[str, ...]) -> None:
    """Raise UserError for an unknown method, or without a density at which to compare them."""
    for method in methods:
        COURSES.check(method)
    if config.density is None:
        raise UserError("--density: is required, since methods are compared at one density, e.g. --density 0.05")


def methods_for(context: MethodContext, asked: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """(the methods to compare, a line on those left out): the given ones, or all that are meaningful here.

    Raises UserError if a given one is not meaningful here.
    """
    left = {name: why for name in asked or COURSES if (why := _why_not(name, context)) is not None}
    if asked and left:
        raise UserError(f"--method: {next(iter(left.values()))}")
    notes = "; ".join(f"{name} is left out: {why}" for name, why in left.items())
    return tuple(name for name in asked or COURSES if name not in left), notes or None


def _why_not(name: str, context: MethodContext) -> str | None:
    """Why a method is not meaningful here, or None."""
    entry = COURSES.get(name)
    why: str | None = None if entry is None or entry.why_not is None else imported(entry.why_not)(context)
    return why


def method_context(config: Config) -> tuple[Config, MethodContext]:
    """Load and check everything. Raises UserError.

    By default a training has one thread, since many can run at once. The engine is `sparse/eager` if possible,
    otherwise `eager`, since masks change often and many networks are made.
    """
    config = replace(config, threads=config.threads or 1)
    choices = ("sparse/eager", "eager") if config.engine == "auto" else (config.engine,)
    for engine in choices:
        try:
            prepared = prepare(replace(config, engine=engine))
            break
        except UserError as error:
            if engine == choices[-1] or not str(error).startswith("--engine"):
                raise
    config, plan = prepared.config, prepared.plan
    trainer = plan.trainer

    def trainer_with(model: Model, optimizer: Optimizer, engine: Making) -> Trainer:
        work = trainer.work._replace(model=model, optimizer=optimizer)
        return with_work(trainer, work, engine)

    cyclic = None
    if config.cycles <= plan.steps:
        optimizer = make_optimizer(replace(config, schedule="cyclic", milestone=()), plan.steps)
        cyclic = trainer_with(plan.model, optimizer, config.engine)
    return config, MethodContext(
        model=plan.model,
        trainer=trainer,
        trainer_of=lambda model, optimizer: trainer_with(model, optimizer, "eager"),
        cyclic=cyclic,
        steps=plan.steps,
        eval_every=plan.eval_every,
        rounds=filled(config.rounds),
        density=filled(config.density),
        device=config.device,
        schedule=schedule_of(config, plan.steps),
        synflow_rounds=config.synflow_rounds or SYNFLOW_ROUNDS,
        cycles=config.cycles,
    )
