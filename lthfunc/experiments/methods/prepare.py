"""From settings to what methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lthfunc.data.augment import shift_and_mirror
from lthfunc.errors import UserError, unknown
from lthfunc.experiments.config import Config
from lthfunc.experiments.families import METHODS
from lthfunc.experiments.methods.iterative import why_not_tuned
from lthfunc.experiments.methods.setting import SYNFLOW_ROUNDS, Setting
from lthfunc.experiments.plan import engine_making, prepare
from lthfunc.experiments.tasks import make_optimizer, schedule_of
from lthfunc.training.engines.table import Making
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.trainer import Trainer, make_trainer
from lthfunc.trees.model import Model


def check_methods(config: Config, methods: tuple[str, ...]) -> None:
    """Raise UserError for a method that isn't known, or no density to compare them at."""
    for method in methods:
        if method not in METHODS:
            raise unknown("--method", method, tuple(METHODS))
    if config.density is None:
        raise UserError("--density: methods are compared at one; give it, e.g. --density 0.05")


def methods_for(setting: Setting, asked: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """(the methods to compare, a line on what is left out): those asked for, or else all that mean something here.

    Raises UserError where one is asked for that means nothing here.
    """
    why = why_not_tuned(setting)
    if why is None or (asked and "imp-tuned" not in asked):
        return tuple(asked or METHODS), None
    if asked:
        raise UserError(f"--method: {why}")
    return tuple(name for name in METHODS if name != "imp-tuned"), f"imp-tuned is left out: {why}"


def setting_of(config: Config) -> tuple[Config, Setting]:
    """Everything loaded and checked. Raises UserError.

    A training has one thread unless told otherwise, since there are many to run side by side. The engine is
    `sparse/eager` where that can be, else `eager`: masks change often, and many networks are made.
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
    trainer, data = plan.trainer, plan.trainer.data

    def trainer_with(model: Model, optimizer: Optimizer, engine: Making) -> Trainer:
        return make_trainer(
            model,
            data,
            optimizer=optimizer,
            batch_size=trainer.batch_size,
            loss=trainer.loss,
            metric=trainer.metric,
            augment=shift_and_mirror if config.augment else None,
            engine=engine,
            precision=trainer.precision,
            on_nonfinite=trainer.on_nonfinite,
        )

    cycles = make_optimizer(replace(config, schedule="cyclic", milestone=()), plan.steps)
    assert config.density is not None
    return config, Setting(
        model=plan.model,
        trainer=trainer,
        trainer_of=lambda model, optimizer: trainer_with(model, optimizer, "eager"),
        cyclic=trainer_with(plan.model, cycles, engine_making(config.engine)),
        steps=plan.steps,
        eval_every=plan.eval_every,
        rounds=config.rounds,
        density=config.density,
        device=config.device,
        schedule=schedule_of(config, plan.steps),
        synflow_rounds=config.synflow_rounds or SYNFLOW_ROUNDS,
    )
