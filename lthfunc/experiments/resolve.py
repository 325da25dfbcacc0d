"""Settings are checked and completed with defaults, before torch is imported or anything is written."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from lthfunc.catalog import data_sets as data, networks as models
from lthfunc.catalog.methods import METHODS, method_entry
from lthfunc.catalog.pruning import REWINDINGS, SCORES, STRUCTURES
from lthfunc.catalog.training import OPTIMIZERS
from lthfunc.errors import UserError, invalid, unknown
from lthfunc.experiments.config import (
    SETTINGS,
    Config,
    Decision,
    applied,
    check_alternatives,
    filled,
    first_round,
    parse_interval,
)
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.settings.setting import settings_in
from lthfunc.experiments.settings.teaching import Teaching
from lthfunc.plugins import is_own
from lthfunc.printable import counted, joined
from lthfunc.registry import Registry

#: For users' own architectures and data sets.
_PLAIN = models.Recipe("adam", 1.2e-3, 60)
_PLAIN_EPOCHS = 10
#: Of all methods, unless they have their own; and the density that those with one round prune to.
METHOD_DEFAULTS: dict[str, Any] = {"rounds": 5, "score": "magnitude", "allocate": "global"}
_ONCE = 0.1


def resolved(config: Config, used: Collection[str] = ()) -> Config:
    """The settings, checked, with canonical names and the defaults of network and data set.

    used: settings that are accepted with any loss, schedule, … since the command itself uses them.

    `device`, `engine`, `jobs` and `threads` may remain open; plan.py decides them. Raises UserError.
    """
    return resolve(config, used)[0]


def resolve(config: Config, used: Collection[str] = ()) -> tuple[Config, list[Decision]]:
    """`resolved`, and what was decided for settings that were left open. Raises UserError."""
    from_mapping(asdict(config))
    _check_choices(config)
    config = replace(config, arch=models.canonical(config.arch), dataset=data.canonical(config.dataset))
    if config.teacher_arch is not None:
        config = replace(config, teacher_arch=models.canonical(config.teacher_arch, "--teacher-arch"))
    of_method = method_settings(config)
    config = applied(config, of_method)
    decisions = [*_network_defaults(config), *_data_defaults(config), *_rewinding_default(config)]
    config = applied(config, decisions)
    _check_together(config, used)
    lengths = _rounds_and_rate(config)
    return applied(config, lengths), of_method + decisions + lengths


def method_settings(config: Config) -> list[Decision]:
    """The settings that the method consists of, and its defaults. Raises UserError where others were given."""
    name = config.method
    entry = method_entry(name)
    decisions = []
    for each, value in entry.settings.items():
        found = getattr(config, each)
        if found not in (value, None, SETTINGS[each].value):
            raise invalid(SETTINGS[each].option, found, f"{value} with --method {name}")
        decisions += [] if found == value else [Decision(each, value, f"a part of --method {name}")]
    defaults = {**METHOD_DEFAULTS, "dense": not entry.at_init, **entry.defaults}
    decisions += [
        Decision(each, value, f"the default of --method {name}")
        for each, value in defaults.items() if getattr(config, each) is None and each not in entry.settings
    ]  # fmt: skip
    once = {**entry.settings, **entry.defaults}.get("rounds") == 1
    open_ = config.density is None and config.densities is None and config.rate == SETTINGS["rate"].value
    if once and open_:
        decisions.append(Decision("density", _ONCE, f"the default of --method {name}"))
    return decisions


def without_method(config: Config) -> dict[str, Any]:
    """The settings by which a run's tickets are trained as they are, whatever method has found them."""
    entry = method_entry(config.method)
    gone = {*METHODS.settings, *entry.settings, *entry.defaults} - {"schedule"}
    return {**dict.fromkeys(gone), "method": "magnitude-init" if first_round(config) else "imp"}


def _network_defaults(config: Config) -> list[Decision]:
    """Training settings from the network's recipe; its rate, momentum and decay apply only to its own optimiser."""
    known = config.arch in models.NETWORKS
    recipe = models.NETWORKS[config.arch].recipe if known else _PLAIN
    whose = f"the default of {config.arch}" if known else "the default for a network that is not in the list"
    optimizer, of_rates = config.optimizer or recipe.optimizer, whose
    if optimizer != recipe.optimizer:
        plain, of_rates = OPTIMIZERS.get(optimizer, OPTIMIZERS["adam"]), f"the default of --optimizer {optimizer}"
        recipe = models.Recipe(optimizer, plain.lr, recipe.batch_size, plain.momentum)
    rates = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    return [
        Decision(name, value, reason)
        for name, value, reason in (
            ("optimizer", optimizer, whose),
            ("batch_size", recipe.batch_size, whose),
            *((name, value, of_rates) for name, value in rates.items()),
        )
        if getattr(config, name) is None
    ]


def _data_defaults(config: Config) -> list[Decision]:
    """Augmentation and the length of a training, by the data set."""
    known = data.DATASETS.get(config.dataset)
    whose = f"the default of {config.dataset}" if known else "the default for a data set that is not in the list"
    decisions = []
    if config.augment is None:
        decisions.append(Decision("augment", known.augment if known else "none", whose))
    if config.epochs is None and config.steps is None:
        decisions.append(Decision("epochs", known.epochs if known else _PLAIN_EPOCHS, whose))
    return decisions


def _rewinding_default(config: Config) -> list[Decision]:
    """Where pruned networks start."""
    if config.rewind is not None:
        return []
    if config.from_trained:
        return [Decision("rewind", "lr", "the weights before training are not known (Renda et al. 2020)")]
    return [Decision("rewind", "init", "the winning ticket's (Frankle & Carbin 2019)")]


def _rounds_and_rate(config: Config) -> list[Decision]:
    """The other settings of pruning that --density and --densities determine."""
    if config.densities is not None and not is_own(config.densities):
        return [Decision("rounds", len(listed(config.densities)), "one for each of --densities")]
    if config.density is not None and config.rounds:
        rate = 1 - config.density ** (1 / config.rounds)
        return [Decision("rate", rate, f"leaves --density {config.density:g} after {counted(config.rounds, 'round')}")]
    return []


def _check_choices(config: Config) -> None:
    for name, setting in SETTINGS.items():
        value = getattr(config, name)
        for choice in setting.chosen(value) if setting.choices else ():
            if setting.names is not None and choice is not None:
                setting.names.check(choice)
            elif choice is not None and choice not in setting.choices and not (setting.own and is_own(choice)):
                raise unknown(setting.option, choice, setting.choices)
    _, numbers = STRUCTURES.find(config.structure) or (None, {})
    if numbers.get("n", 0) > numbers.get("m", 0):
        raise invalid("--structure", config.structure, "N:M with N of at most M")
    parse_interval(config.checkpoint_every)


def _check_taken(config: Config, names: Registry[Any], chosen: str, used: Collection[str]) -> None:
    """Raise UserError for a setting that some of these names use, but not the chosen one."""
    ours = names.settings - {*used}
    for name in [name for name in SETTINGS if name in ours]:
        setting, value = SETTINGS[name], getattr(config, name)
        unset = value in (None, setting.value) or (setting.of_optimizer and not value)
        if unset or chosen == "auto" or name in names.takes(chosen):
            continue
        takers = [key for key, entry in names.items() if name in entry.takes]
        options = joined(takers, "or")
        raise UserError(f"{setting.option}: requires {names.option} {options}, not {chosen}")


def listed(densities: str) -> list[float]:
    """Parse decreasing densities. Raises UserError."""
    try:
        values = [float(part) for part in densities.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < low < high <= 1 for high, low in pairwise([1.0, *values])):
        raise invalid("--densities", densities, "decreasing numbers between 0 and 1, e.g. 0.5,0.2,0.1")
    return values


def _check_together(config: Config, used: Collection[str]) -> None:
    check_alternatives(
        [name for name, each in SETTINGS.items() if each.value is None and getattr(config, name) is not None]
    )
    for setting in SETTINGS.values():
        if setting.names is not None and setting.holds is None:
            _check_taken(config, setting.names, getattr(config, setting.name), used)
    if config.from_trained:
        _check_trained(config)
    _check_taught(config)
    _check_method(config)
    if config.nesterov and not config.momentum:
        raise UserError("--nesterov: requires a --momentum above 0")
    if config.no_decay and not config.weight_decay:
        raise UserError("--no-decay: requires a --weight-decay above 0")
    if config.compact and config.device.startswith("cuda") and (config.jobs or 1) > 1:
        raise invalid("--jobs", config.jobs, "1 with --compact, whose networks differ in size")
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", config.device):
        raise invalid("--device", config.device, "auto, cpu, cuda or cuda:N")
    if config.executor not in ("local", "ray") and not re.fullmatch(r"ray://[\w.-]+:\d{1,5}", config.executor):
        raise invalid("--executor", config.executor, "local, ray, or the address of a cluster, ray://HOST:PORT")
    if config.energy and config.executor != "local":
        raise invalid("--executor", config.executor, "local with --energy, which is measured on one machine")
    if config.country is not None and not config.energy:
        raise UserError("--country: requires --energy")
    if config.country is not None and not re.fullmatch(r"[A-Z]{3}", config.country):
        raise invalid("--country", config.country, "the three letters of ISO 3166-1 for a country, e.g. FRA, DEU, USA")
    if config.energy and (config.jobs or 1) > 1 and not config.device.startswith("cuda"):
        raise invalid("--jobs", config.jobs, "1 with --energy, which cannot be measured per process")
    if config.lr_final is not None and config.lr is not None and config.lr_final > config.lr:
        raise invalid("--lr-final", config.lr_final, f"a number from 0 to the --lr, {config.lr:g}")
    if config.allocate == "lamp" and (found := SCORES.find(filled(config.score))) is not None and found[0].signed:
        raise invalid("--allocate", "lamp", f"scores of at least 0, which --score {config.score} are not")
    if "none" in (several := filled(config.augment).split(",")) and len(several) > 1:
        raise invalid("--augment", config.augment, "none, or others")
    if len(set(config.control)) < len(config.control):
        raise invalid("--control", ", ".join(config.control), "each control once")


def _check_taught(config: Config) -> None:
    """Raise UserError for settings of a teacher without one."""
    for name, setting in settings_in(Teaching).items():
        if config.teacher is None and getattr(config, name) not in (setting.value, None):
            raise UserError(f"{setting.option}: requires --teacher")
    if config.teacher_arch is None and config.teacher_arch_option:
        raise UserError("--teacher-arch-option: requires --teacher-arch")


def _check_method(config: Config) -> None:
    """Raise UserError for settings that a method excludes."""
    if config.method not in METHODS:
        return
    if METHODS[config.method].at_init:
        if config.from_trained:
            others = ", ".join(name for name, entry in METHODS.items() if not entry.at_init)
            raise invalid("--method", config.method, f"one of {others} with --from-trained")
        if not config.rounds:
            raise invalid("--rounds", config.rounds, f"at least 1 with --method {config.method}")
    elif not config.dense:
        raise UserError(
            f"--no-dense: --method {config.method} prunes trained networks; use one that prunes untrained ones, such "
            "as snip or rigl"
        )


def _check_trained(config: Config) -> None:
    """Raise UserError for settings that a network that comes trained excludes."""
    if config.weights is None:
        raise UserError("--from-trained: requires --weights FILE, the weights of the trained network")
    found = REWINDINGS.find(filled(config.rewind))
    if found is not None and found[0].early:
        others = ", ".join(name for name, entry in REWINDINGS.items() if not entry.early)
        raise invalid(
            "--rewind",
            config.rewind,
            f"{others} or a function of your own with --from-trained, as earlier weights are not known",
        )
