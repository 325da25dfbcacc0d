"""What a network learns and how: losses, metrics, learning rates and optimisers by name, or a user's own."""

from __future__ import annotations

import math
from typing import TypeVar

import torch

from lthfunc.catalog.training import (
    AUGMENTATIONS,
    LOSSES,
    METRICS,
    OPTIMIZER_PARTS,
    OPTIMIZERS,
    SCHEDULES,
    TargetsEntry,
)
from lthfunc.data.augment.sequences import augmentations
from lthfunc.errors import UserError, invalid, prefixed
from lthfunc.experiments.config import SETTINGS, Config, Decision, filled
from lthfunc.plugins import called, is_own
from lthfunc.printable import a_or_an
from lthfunc.registry import Offered, Registry, imported, taken
from lthfunc.training import schedules
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.chain import Part, chain
from lthfunc.training.language import label_smoothed_next_token, next_token
from lthfunc.training.losses import Loss, Metric, cross_entropy, label_smoothed_cross_entropy
from lthfunc.training.optimizers import Optimizer, is_matrix
from lthfunc.training.schedules import Schedule
from lthfunc.trees.augmenting import Augment, changes_targets
from lthfunc.trees.ops import scaled
from lthfunc.trees.types import Dataset

E = TypeVar("E", bound=TargetsEntry)

#: The loss and the metric of targets that are not classes of examples or tokens.
_AUTO = {"numbers": ("mse", "r2"), "pixels": ("pixel-cross-entropy", "mean-iou")}


def decide_objective(config: Config, data: Dataset) -> list[Decision]:
    """Decide what `auto` stands for, by the kind of targets."""
    targets = _targets(data)
    loss, metric = _AUTO.get(targets, ("cross-entropy", "accuracy"))
    reason = f"the targets are {targets}"
    decided = Decision("loss", loss, reason), Decision("metric", metric, reason)
    return [each for each in decided if getattr(config, each.setting) == "auto"]


def loss_of_name(config: Config, data: Dataset) -> Loss:
    """A loss by its name, or a function ``outputs, targets -> scalar``.

    Raises UserError if it doesn't fit the data's targets.
    """
    name = config.loss
    _check_targets(LOSSES, name, data)
    if config.label_smoothing and "label_smoothing" not in LOSSES.takes(name):
        raise invalid("--label-smoothing", config.label_smoothing, f"0 with --loss {name}")
    made: Loss = LOSSES.make(name, {"label_smoothing": config.label_smoothing}, fits="Loss")
    return made


def cross_entropy_loss(label_smoothing: float) -> Loss:
    """Cross entropy, with or without label smoothing."""
    return label_smoothed_cross_entropy(label_smoothing) if label_smoothing else cross_entropy


def next_token_loss(label_smoothing: float) -> Loss:
    """Cross entropy of the next token, with or without label smoothing."""
    return label_smoothed_next_token(label_smoothing) if label_smoothing else next_token


def metric_of_name(config: Config, data: Dataset) -> Metric:
    """A metric by its name, or a function ``outputs, targets -> scalar``, a share of which more is better.

    Raises UserError if it doesn't fit the data's targets.
    """
    name = config.metric
    _check_targets(METRICS, name, data)
    y = data.train.y if data.stream is None else data.val.y  # a stream shows only its first examples
    variance = Offered(variance=lambda: y.var(0, correction=0).clamp(min=1e-12))
    found = METRICS.find(name)
    if found is not None and found[1].get("count", 0) >= (data.classes or math.inf):
        raise invalid("--metric", name, f"top-K with K below {data.classes}, the number of classes")
    made: Metric = METRICS.make(name, variance, fits="Metric")
    return made


def _targets(data: Dataset) -> str:
    """The kind of targets, in a word."""
    if data.train.y.is_floating_point():
        return "numbers"
    if data.pixels:
        return "pixels"
    return "tokens" if data.tokens and data.train.y.shape == data.train.x.shape else "classes"


def _check_targets(names: Registry[E], name: str, data: Dataset) -> None:
    """Raise UserError if a loss or metric doesn't fit the data's targets."""
    targets, found = _targets(data), names.find(name)
    if found is not None and not found[0].fits(targets):
        fitting = ", ".join(key for key, entry in names.items() if entry.fits(targets))
        raise invalid(names.option, name, f"{fitting} or a function of your own for targets that are {targets}")


def augmentation_of(config: Config, data: Dataset) -> Augment | None:
    """The random changes of training inputs, or None.

    A user's is a function (inputs, key) -> inputs or (inputs, targets, key) -> (inputs, targets), or makes such a
    function of what its signature has of `scale` and `classes`.

    Raises UserError for one that doesn't work on the data's inputs or targets.
    """
    names, targets = filled(config.augment).split(","), _targets(data)
    if names == ["none"]:
        return None
    offered = {"scale": data.scale, "classes": None if targets == "numbers" else data.classes}
    parts = []
    for name in names:
        found = AUGMENTATIONS.find(name)
        if found is not None and found[0].inputs == "images" and len(data.shape) != 3:
            raise UserError(f"--augment: {name} works on images, not on inputs of shape {data.shape}")
        if found is not None and data.tokens:
            raise UserError(f"--augment: {name} works on numbers, not on tokens")
        with prefixed("--augment"):
            parts.append(AUGMENTATIONS.make(name, offered, fits="Augment"))
            if found is not None and not changes_targets(parts[-1]):
                parts[-1](scaled(data.train.x[:2], data.scale), torch.tensor(0))
        if found is not None and changes_targets(parts[-1]) and targets != "numbers" and data.train.y.ndim != 1:
            raise UserError(f"--augment: {name} works on one class for each example, or numbers")
    return augmentations(*parts)


def schedule_of(config: Config, steps: int) -> Schedule:
    """The learning rates of a resolved configuration, for trainings of this many steps."""
    lr = filled(config.lr)
    if config.schedule == "cyclic":
        _check_cycles(config, steps)
    _check_inside(config, steps)
    # Two drops to a tenth, after 2/3 and 5/6 of the training, as in Frankle & Carbin 2019, sec. 4.
    drops = config.milestone or (steps * 2 // 3, steps * 5 // 6)
    final = config.lr_final or 0.0
    end = {} if config.lr_final is None else {"end": final / lr}  # as a share; other schedules have their own ends
    offered = {"lr": lr, "steps": steps, "milestones": drops, "cycles": config.cycles, "final": final, **end}
    made: Schedule = SCHEDULES.make(config.schedule, offered, fits="Schedule")
    return schedules.warmup(made, config.warmup)


def _check_cycles(config: Config, steps: int) -> None:
    """Raise UserError, which names the setting, if a training has fewer steps than cycles."""
    if steps >= config.cycles:
        return
    if config.cycles != Config.cycles:
        raise invalid("--cycles", config.cycles, f"a whole number from 1 to {steps}, the steps of a training")
    option, value = ("--epochs", config.epochs) if config.steps is None else ("--steps", config.steps)
    words = f"at least {config.cycles} steps with --schedule cyclic (--cycles)"
    raise invalid(option, value, words)


def _check_inside(config: Config, steps: int) -> None:
    """Raise UserError, which names the setting, for a warm-up or drops that the training would not reach."""
    if config.warmup > steps:
        raise invalid("--warmup", config.warmup, f"a whole number from 0 to {steps}, the steps of a training")
    late = [step for step in config.milestone if step >= steps] if config.schedule == "step" else []
    if late:
        raise invalid("--milestone", late[0], f"a step before {steps}, the end of a training")


def check_last_rate(config: Config, steps: int) -> None:
    """Raise UserError if pruned networks should continue at the schedule's last rate, and that is about 0."""
    if not config.rounds or config.rewind != "last-lr" or is_own(config.optimizer or ""):
        return
    if schedules.ends_at(schedule_of(config, steps), 2 * steps) is not None:
        raise UserError(
            f"--rewind: last-lr continues at the last learning rate of --schedule {config.schedule}, which is about 0; "
            "set a higher one with --lr-final"
        )


def make_optimizer(config: Config, steps: int) -> Optimizer:
    """The optimiser and schedule of a resolved configuration, for trainings of this many steps.

    Other settings put parts before and behind it (`chain`). A user's is a function that returns an Optimizer, or a pair
    (init, update), and is called with those of lr (the schedule), momentum, weight_decay and so on that its signature
    has. Raises UserError.
    """
    optimizer, given = _without_parts(config, steps), [
        (target, value) for name, target in OPTIMIZER_PARTS.items()
        if (value := getattr(config, name)) != SETTINGS[name].value
    ]  # fmt: skip
    parts: list[Part] = [imported(target)(value) for target, value in given]
    before, behind = ([part for part in parts if part.follows == follows] for follows in (False, True))
    return chain(*before, optimizer, *behind) if parts else optimizer


def _without_parts(config: Config, steps: int) -> Optimizer:
    """The optimiser by its name."""
    table, momentum, decay = schedule_of(config, steps), config.momentum or 0.0, config.weight_decay or 0.0
    name, decays = filled(config.optimizer), is_matrix if config.no_decay else None
    offered = {
        "lr": table, "schedule": table, "momentum": momentum, "nesterov": config.nesterov, "weight_decay": decay,
        "decays": decays, "steps": steps,
    }  # fmt: skip
    if name in OPTIMIZERS:
        made: Optimizer = OPTIMIZERS.make(name, offered)
        return made
    function = OPTIMIZERS.load(name)
    if decays is not None and "decays" not in (taken(function, offered) or []):
        raise UserError(f"--no-decay: {name!r} takes no argument decays, by which it would learn of it")
    own = called("--optimizer", name, function, offered, None)
    if isinstance(own, tuple) and not isinstance(own, Optimizer) and len(own) == 2 and all(map(callable, own)):
        return Optimizer(*own, mixes=True)  # it may mix weights, so the step masks them after it
    if not isinstance(own, Optimizer):
        found = a_or_an(type(own).__name__)
        raise UserError(f"--optimizer: {name!r} returned {found}, not an lthfunc.Optimizer or a pair (init, update)")
    if parts_of_batch(own) > 1:
        raise UserError(f"--optimizer: {name!r} returned a chain with accumulate, which --accumulate sets")
    return own
