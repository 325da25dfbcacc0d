"""What a network is to learn and how: losses, metrics, learning rates and optimisers by name, or a user's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.config import Config, is_own
from lthfunc.plugins import called, load_plugin
from lthfunc.training import schedules
from lthfunc.training.lion import lion
from lthfunc.training.losses import (
    Loss,
    Metric,
    accuracy,
    cross_entropy,
    huber,
    label_smoothed_cross_entropy,
    mean_absolute_error,
    mean_squared_error,
    r2,
    top_k,
)
from lthfunc.training.muon import muon
from lthfunc.training.optimizers import Optimizer, adam, adamw, sgd
from lthfunc.training.schedules import Schedule
from lthfunc.trees.types import Dataset

_OF_NUMBERS: dict[str, Loss] = {"mse": mean_squared_error, "mae": mean_absolute_error, "huber": huber}


def named_for(config: Config, data: Dataset) -> Config:
    """With what `auto` stands for: cross entropy and accuracy for classes, mean squared error and R² for numbers."""
    numbers = data.train.y.is_floating_point()
    loss, metric = ("mse", "r2") if numbers else ("cross-entropy", "accuracy")
    return replace(
        config,
        loss=loss if config.loss == "auto" else config.loss,
        metric=metric if config.metric == "auto" else config.metric,
    )


def loss_of_name(config: Config, data: Dataset) -> Loss:
    """A loss by its name, or a function ``outputs, targets -> scalar``; auto: cross entropy for classes, else mse.

    Raises UserError where it is not one for the data's targets.
    """
    name, numbers = named_for(config, data).loss, data.train.y.is_floating_point()
    if name == "cross-entropy":
        if numbers:
            raise invalid("--loss", name, f"one of {', '.join(_OF_NUMBERS)} for targets that are numbers")
        return label_smoothed_cross_entropy(config.label_smoothing) if config.label_smoothing else cross_entropy
    if config.label_smoothing:
        raise invalid("--label-smoothing", config.label_smoothing, f"0 with --loss {name}")
    if name in _OF_NUMBERS:
        if not numbers:
            raise invalid("--loss", name, "cross-entropy for targets that are classes")
        return _OF_NUMBERS[name]
    own: Any = load_plugin("--loss", name)
    return own  # type: ignore[no-any-return]


def metric_of_name(config: Config, data: Dataset) -> Metric:
    """A metric by its name, or a function ``outputs, targets -> scalar``, the more the better.

    auto: accuracy for classes, R² for numbers. Raises UserError where it is not one for the data's targets.
    """
    name, numbers = named_for(config, data).metric, data.train.y.is_floating_point()
    if name == "r2":
        if not numbers:
            raise invalid("--metric", name, "accuracy or top-K for targets that are classes")
        return r2(data.train.y.var(0, correction=0).clamp(min=1e-12))
    if name == "accuracy" or name.startswith("top-"):
        if numbers:
            raise invalid("--metric", name, "r2, or a function of your own, for targets that are numbers")
        return accuracy if name == "accuracy" else top_k(int(name.removeprefix("top-")))
    own: Any = load_plugin("--metric", name)
    return own  # type: ignore[no-any-return]


def schedule_of(config: Config, steps: int) -> Schedule:
    """The learning rates of a resolved configuration, for trainings of so many steps."""
    lr = config.lr
    assert lr is not None
    if config.schedule == "cyclic":
        _check_cycles(config, steps)
    # Two drops to a tenth, after 2/3 and 5/6 of the training, as in Frankle & Carbin 2019, sec. 4.
    drops = config.milestone or (steps * 2 // 3, steps * 5 // 6)
    final = config.lr_final or 0.0
    end = {} if config.lr_final is None else {"end": final / lr}  # as a share; they have ends of their own
    made: dict[str, Callable[[], Schedule]] = {
        "constant": lambda: schedules.constant(lr),
        "step": lambda: schedules.stepwise(lr, drops, final=final),
        "cosine": lambda: schedules.cosine(lr, steps, final),
        "cyclic": lambda: schedules.cyclic(lr, steps, config.cycles, final),
        "one-cycle": lambda: schedules.one_cycle(lr, steps, **end),
        "triangular": lambda: schedules.triangular(lr, steps, **end),
        "trapezoidal": lambda: schedules.trapezoidal(lr, steps, final=final),
    }
    return schedules.warmup(made[config.schedule](), config.warmup)


def _check_cycles(config: Config, steps: int) -> None:
    """Raise UserError, which names what was set, where a training has no step for each of its cycles."""
    if steps >= config.cycles:
        return
    if config.cycles != Config.cycles:
        raise invalid("--cycles", config.cycles, f"a whole number from 1 to {steps}, the steps of a training")
    option, value = ("--epochs", config.epochs) if config.steps is None else ("--steps", config.steps)
    words = f"at least {config.cycles} steps with --schedule cyclic (--cycles)"
    raise invalid(option, value, words)


def check_last_rate(config: Config, steps: int) -> None:
    """Raise UserError where pruned networks are to go on at the schedule's last rate, and that changes nothing."""
    if not config.rounds or config.rewind != "last-lr" or is_own(config.optimizer or ""):
        return
    if schedules.ends_at(schedule_of(config, steps), 2 * steps) is not None:
        raise UserError(
            f"--rewind: last-lr goes on at the last rate of --schedule {config.schedule}, which is about 0; "
            "set a higher one with --lr-final"
        )


def make_optimizer(config: Config, steps: int) -> Optimizer:
    """The optimiser and schedule of a resolved configuration, for trainings of so many steps.

    A user's own is a function that returns an Optimizer, or a pair (init, update), and is given what its signature
    accepts of lr (the schedule), momentum and weight_decay. Raises UserError.
    """
    table, momentum, decay = schedule_of(config, steps), config.momentum or 0.0, config.weight_decay or 0.0
    made: dict[str, Callable[[], Optimizer]] = {
        "sgd": lambda: sgd(table, momentum, config.nesterov, decay),
        "adam": lambda: adam(table, weight_decay=decay),
        "adamw": lambda: adamw(table, weight_decay=decay),
        "lion": lambda: lion(table, weight_decay=decay),
        "muon": lambda: muon(table, momentum, weight_decay=decay),
    }
    name = config.optimizer
    assert name is not None
    if name in made:
        return made[name]()
    offered = {"lr": table, "schedule": table, "momentum": momentum, "weight_decay": decay, "steps": steps}
    own = called("--optimizer", name, load_plugin("--optimizer", name), offered, {})
    if isinstance(own, Optimizer):
        return own
    if isinstance(own, tuple) and len(own) == 2 and all(map(callable, own)):
        return Optimizer(*own, mixes=True)  # nothing is known of it, so the step masks the weights after it
    raise UserError(
        f"--optimizer: {name!r} returned a {type(own).__name__}, not an lthfunc.Optimizer or a pair (init, update)"
    )
