"""The settings of an experiment: one field per command-line option, checked before torch is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

from lthfunc.data import catalog as data
from lthfunc.errors import UserError, invalid, unknown
from lthfunc.models import catalog as models

SCOPES = ("global", "layerwise")
SCORES = ("magnitude", "random")
OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine")
CONTROLS = ("reinit", "random-mask", "shuffled-mask")
REWINDS = "init, none, reinit, step:K or epoch:K"

#: For architectures of the user's own.
_PLAIN = models.Recipe("adam", 1.2e-3, 60)
_PLAIN_EPOCHS = 10


@dataclass(frozen=True)
class Config:
    """Settings; None means "the default of this architecture or data set" until `resolved` fills it in."""

    arch: str = "lenet300"
    dataset: str = "digits"
    rounds: int = 5
    rate: float = 0.2
    scope: str = "global"
    layer_rate: dict[str, float] = field(default_factory=dict)
    score: str = "magnitude"
    rewind: str = "init"
    control: tuple[str, ...] = ()
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    nesterov: bool = False
    weight_decay: float | None = None
    schedule: str = "constant"
    milestone: tuple[int, ...] = ()
    warmup: int = 0
    augment: bool | None = None
    eval_every: int | None = None
    seed: int = 0
    replicates: int = 1
    device: str = "auto"
    compile: bool | None = None
    data_dir: str | None = None


class Rewind(NamedTuple):
    """Where pruned networks start again. kind: init, none, reinit, step or epoch; at: the k of step and epoch."""

    kind: str
    at: int = 0


def parse_rewind(text: str) -> Rewind:
    """``step:500`` and the like. Raises UserError."""
    if text in ("init", "none", "reinit"):
        return Rewind(text)
    if found := re.fullmatch(r"(step|epoch):(\d+)", text):
        return Rewind(found[1], int(found[2]))
    raise invalid("--rewind", text, REWINDS)


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A Config from plain values (a TOML file's, say). Raises UserError for unknown names and wrong types."""
    names = {item.name for item in fields(Config)}
    for name in values:
        if name not in names:
            raise unknown("configuration", name, sorted(names))
    given = {name: _typed(name, value) for name, value in values.items() if value is not None}
    return Config(**given)


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain values, without those that are not set."""
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {name: value for name, value in plain.items() if value is not None}


def resolved(config: Config) -> Config:
    """Checked, with names made canonical and the defaults of architecture and data set filled in.

    `device` and `compile` may stay open; they depend on the machine. Raises UserError.
    """
    arch, dataset = models.canonical(config.arch), data.canonical(config.dataset)
    recipe = models.ARCHS[arch].recipe if arch in models.ARCHS else _PLAIN
    known = data.DATASETS.get(dataset)
    config = replace(
        config,
        arch=arch,
        dataset=dataset,
        optimizer=_first(config.optimizer, recipe.optimizer),
        batch_size=_first(config.batch_size, recipe.batch_size),
        augment=_first(config.augment, known is not None and known.augment),
    )
    # A recipe's rate, momentum and decay belong to its own optimiser.
    own = config.optimizer == recipe.optimizer
    plain_lr = 0.05 if config.optimizer == "sgd" else 1.2e-3
    config = replace(
        config,
        lr=_first(config.lr, recipe.lr if own else plain_lr),
        momentum=_first(config.momentum, recipe.momentum if own else 0.0),
        weight_decay=_first(config.weight_decay, recipe.weight_decay if own else 0.0),
    )
    if config.epochs is None and config.steps is None:
        config = replace(config, epochs=known.epochs if known else _PLAIN_EPOCHS)
    _check(config)
    return config


def _check(config: Config) -> None:
    if config.epochs is not None and config.steps is not None:
        raise UserError("--epochs and --steps: give one of them, not both")
    for option, value, least in (
        ("--rounds", config.rounds, 0),
        ("--epochs", config.epochs, 1),
        ("--steps", config.steps, 1),
        ("--batch-size", config.batch_size, 1),
        ("--replicates", config.replicates, 1),
        ("--seed", config.seed, 0),
        ("--warmup", config.warmup, 0),
        ("--eval-every", config.eval_every, 1),
    ):
        if value is not None and value < least:
            raise invalid(option, value, f"a whole number of at least {least}")
    if not 0 < config.rate < 1:
        raise invalid("--rate", config.rate, "a number between 0 and 1, both excluded")
    if config.lr is None or not 0 < config.lr < float("inf"):
        raise invalid("--lr", config.lr, "a number above 0")
    if config.momentum is None or not 0 <= config.momentum < 1:
        raise invalid("--momentum", config.momentum, "a number in [0, 1)")
    if config.momentum and config.optimizer != "sgd":
        raise invalid("--momentum", config.momentum, "0 unless --optimizer is sgd")
    if config.nesterov and not config.momentum:
        raise UserError("--nesterov: takes --optimizer sgd with a --momentum above 0")
    if config.weight_decay is None or not 0 <= config.weight_decay < float("inf"):
        raise invalid("--weight-decay", config.weight_decay, "a number of at least 0")
    for option, value, names in (
        ("--scope", config.scope, SCOPES),
        ("--score", config.score, SCORES),
        ("--optimizer", config.optimizer or "", OPTIMIZERS),
        ("--schedule", config.schedule, SCHEDULES),
        *(("--control", control, CONTROLS) for control in config.control),
    ):
        if value not in names:
            raise unknown(option, value, names)
    if len(set(config.control)) < len(config.control):
        raise invalid("--control", ", ".join(config.control), "each control once")
    if config.milestone and config.schedule != "step":
        raise UserError("--milestone: takes --schedule step with it")
    if any(milestone < 1 for milestone in config.milestone):
        raise invalid("--milestone", min(config.milestone), "a step of at least 1")
    if config.layer_rate and config.scope != "layerwise":
        raise UserError("--layer-rate: takes --scope layerwise with it")
    for pattern, rate in config.layer_rate.items():
        if not 0 <= rate < 1:
            raise invalid("--layer-rate", f"{pattern}={rate}", "a rate in [0, 1)")
    parse_rewind(config.rewind)


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def _typed(name: str, value: Any) -> Any:
    """A TOML value as the field's type; whole numbers serve as floats, nothing else is converted."""
    wanted = str(Config.__dataclass_fields__[name].type)
    option = f"configuration: {name}"
    if name == "layer_rate":
        if not isinstance(value, Mapping) or not all(_is_number(rate) for rate in value.values()):
            raise invalid(option, value, "a table of patterns and numbers")
        return {str(pattern): float(rate) for pattern, rate in value.items()}
    if wanted.startswith("tuple"):
        kind = int if "int" in wanted else str
        if not isinstance(value, (list, tuple)) or not all(type(item) is kind for item in value):
            raise invalid(option, value, f"a list of {'whole numbers' if kind is int else 'strings'}")
        return tuple(value)
    if wanted.startswith("float"):
        if not _is_number(value):
            raise invalid(option, value, "a number")
        return float(value)
    for start, kind, words in (
        ("int", int, "a whole number"),
        ("bool", bool, "true or false"),
        ("str", str, "a string"),
    ):
        if wanted.startswith(start):
            if type(value) is not kind:
                raise invalid(option, value, words)
            return value
    raise AssertionError(f"field {name} has a type this function does not know: {wanted}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
