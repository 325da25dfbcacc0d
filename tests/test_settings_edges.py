"""Settings at their edges: what each takes and what it just doesn't, rule by rule, and what fills the gaps."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from lthfunc.catalog.pruning import REWINDINGS, STRUCTURES
from lthfunc.catalog.training import SCHEDULES
from lthfunc.errors import UserError
from lthfunc.experiments.config import (
    SETTINGS,
    Config,
    Interval,
    parse_interval,
    to_mapping,
    trainings_at_once,
)
from lthfunc.experiments.resolve import listed, resolved
from lthfunc.experiments.schema import from_mapping, json_schema
from lthfunc.plugins import is_own

OWN = "package.module:function"


# ---- ranges ----

#: (setting, values at its ends that it takes, values just beyond, what it says that it takes).
RANGES: list[tuple[str, list[Any], list[Any], str]] = [
    ("rounds", [0, 10_000], [-1, 10_001], "a whole number from 0 to 10,000"),
    ("rate", [1e-300, 1 - 1e-16], [0.0, 1.0], "a number between 0 and 1, both excluded"),
    ("density", [1e-300, 1 - 1e-16], [0.0, 1.0], "a number between 0 and 1, both excluded"),
    ("min_layer_weights", [0, 10**12], [-1, 10**12 + 1], "a whole number from 0 to 1,000,000,000,000"),
    ("layer_rate", [{"a": 0.0}, {"a": 1 - 1e-16}], [{"a": -0.1}, {"a": 1.0}],
     r"a table of names, each with a number in \[0, 1\)"),
    ("epochs", [1, 1_000_000], [0, 1_000_001], "a whole number from 1 to 1,000,000"),
    ("steps", [1, 100_000_000], [0, 100_000_001], "a whole number from 1 to 100,000,000"),
    ("batch_size", [1, 10_000_000], [0, 10_000_001], "a whole number from 1 to 10,000,000"),
    ("lr", [1e-300, 1e9], [0.0, -1.0], "a number above 0"),
    ("lr_final", [0.0, 1e9], [-1e-9], "a number of at least 0"),
    ("momentum", [0.0, 1 - 1e-16], [-1e-9, 1.0], r"a number in \[0, 1\)"),
    ("weight_decay", [0.0, 1e9], [-1e-9], "a number of at least 0"),
    ("milestone", [(1,), (100_000_000,)], [(0,), (5, 100_000_001)],
     "a list, each a whole number from 1 to 100,000,000"),
    ("cycles", [1, 1_000_000], [0, 1_000_001], "a whole number from 1 to 1,000,000"),
    ("warmup", [0, 100_000_000], [-1, 100_000_001], "a whole number from 0 to 100,000,000"),
    ("synflow_rounds", [1, 10_000], [0, 10_001], "a whole number from 1 to 10,000"),
    ("label_smoothing", [0.0, 1 - 1e-16], [-1e-9, 1.0], r"a number in \[0, 1\)"),
    ("eval_every", [1, 100_000_000], [0, 100_000_001], "a whole number from 1 to 100,000,000"),
    ("seed", [0, 2**62], [-1, 2**62 + 1], "a whole number from 0 to 4,611,686,018,427,387,904"),
    ("replicates", [1, 10_000], [0, 10_001], "a whole number from 1 to 10,000"),
    ("jobs", [1, 10_000], [0, 10_001], "a whole number from 1 to 10,000"),
    ("threads", [1, 10_000], [0, 10_001], "a whole number from 1 to 10,000"),
    ("gpu_share", [1e-300, 1.0], [0.0, 1 + 1e-15], r"a number in \(0, 1\]"),
    ("nesterov", [True, False], [1, "true"], "true or false"),
    ("arch", ["x"], [1, True], "a string"),
    ("never_prune", [(), ("a", "b")], ["a", (1,)], "a list of strings"),
    ("dataset_option", [{}, {"a": "b"}], [{"a": 1}, "a=b"], "a table of names, each with a string"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "within", "beyond", "words"), RANGES, ids=[each[0] for each in RANGES])
def test_ranges_end_where_they_say(name: str, within: list[Any], beyond: list[Any], words: str) -> None:
    for value in within:
        assert getattr(from_mapping({name: value}), name) == value
        from_mapping(asdict(replace(Config(), **{name: value})))
    for value in beyond:
        with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')}: invalid value .* \(expected {words}\)$"):
            from_mapping({name: value})


def test_every_number_of_a_configuration_is_in_the_table_of_ranges() -> None:
    numbers = {name for name, kind in json_schema()["properties"].items() if "inimum" in json.dumps(kind)}
    assert numbers <= {each[0] for each in RANGES}


def test_what_a_bad_value_is_shown_as() -> None:
    with pytest.raises(UserError, match=r"^--layer-rate: invalid value 'fc1\*=2.0'"):
        from_mapping({"layer_rate": {"fc1*": 2.0}})
    with pytest.raises(UserError, match=r"^--rounds: invalid value '" + "x" * 79 + r"… \(expected"):
        from_mapping({"rounds": "x" * 90})
    with pytest.raises(UserError, match=r"^--rounds: invalid value '" + "x" * 78 + r"' \(expected"):
        from_mapping({"rounds": "x" * 78})  # 80 characters with its quotes
    with pytest.raises(UserError, match=r"^--rounds: invalid value '" + "x" * 79 + r"… \(expected"):
        from_mapping({"rounds": "x" * 79})  # 81
    with pytest.raises(UserError, match=r"^--rounds: invalid value of thousands of digits"):
        from_mapping({"rounds": 10**5000})


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[0m", "a\x7f", "a\ud800"])
@pytest.mark.parametrize(
    "values", [lambda t: {"data_dir": t}, lambda t: {"never_prune": ("fc1*", t)}, lambda t: {"arch_option": {"a": t}},
               lambda t: {"arch_option": {t: "a"}}]
)  # fmt: skip
def test_text_that_a_terminal_would_obey_is_refused(text: str, values: Any) -> None:
    given = values(text)
    option = "--" + next(iter(given)).replace("_", "-")
    with pytest.raises(UserError, match=f"^{option}: .*text in UTF-8 without control characters"):
        from_mapping(given)
    from_mapping(values("ä — ✓"))


def test_mappings_are_configurations_and_back() -> None:
    config = Config(control=("reinit",), milestone=(3,), schedule="step", layer_rate={"a": 0.5}, lr=0.1, epochs=None)
    plain = to_mapping(config)
    assert plain["control"] == ["reinit"]
    assert plain["milestone"] == [3]
    assert "epochs" not in plain
    assert from_mapping(plain) == config
    assert from_mapping({"compile": False}).engine == "eager"
    assert from_mapping({"compile": True}).engine == "compile"
    assert from_mapping({"scope": "erk", "rounds": 2}) == Config(allocate="erk", rounds=2)
    with pytest.raises(UserError, match="configuration: unknown name 'compile'"):
        from_mapping({"compile": "yes"})
    assert from_mapping({"rounds": None, "lr": 0.5}) == Config(lr=0.5)


def test_trainings_that_wait_for_none_are_counted() -> None:
    assert trainings_at_once(Config(replicates=3, control=("reinit", "random-mask"), rounds=1)) == 9
    assert trainings_at_once(Config(replicates=3, control=("reinit", "random-mask"), rounds=0)) == 3


# ---- names ----


def test_names_are_held_to_their_lists() -> None:
    chosen = {
        name: (each.choices if each.names is None else each.names.spelled()[0], each.own)
        for name, each in SETTINGS.items()
        if each.choices
    }
    assert chosen
    for name, (known, takes_own) in chosen.items():
        for value in (*known, *([OWN] if takes_own else [])):
            changes: dict[str, Any] = {name: (value,) if SETTINGS[name].holds is list else value}
            resolved(Config(**changes, lr_final=None))
        for value in ("no-such", *([] if takes_own else [OWN])):
            changes = {name: (value,) if SETTINGS[name].holds is list else value}
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')}: unknown name {value!r}"):
                resolved(Config(**changes))


def test_metrics_are_names_numbers_and_functions() -> None:
    for name in ("auto", "accuracy", "r2", "top-1", "top-10", OWN, "file.py:f"):
        resolved(Config(metric=name))
    for name in ("top-0", "top-", "top-1x", "top-05", "acc"):
        with pytest.raises(UserError, match=f"^--metric: unknown name '{name}'"):
            resolved(Config(metric=name))


def test_names_of_functions_are_told_from_others() -> None:
    for name in ("a:b", "a.b_2:c", "path/to/file.py:name", "odd name.py:f", "_a:_b"):
        assert is_own(name), name
    for name in ("a", "a:", ":b", "a:b:c", "2a:b", "a:2b", "a-b:c", "file.txt/x:f", "a:b c"):
        assert not is_own(name), name


def test_rewindings_are_read() -> None:
    for text, numbers in {
        **{key: {} for key in ("init", "sign", "lr", "none", "last-lr", "reinit")}, OWN: None, "step:0": {"step": 0},
        "step:12": {"step": 12}, "epoch:3": {"epoch": 3}, "lr:7": {"step": 7}, "sign:2": {"step": 2},
    }.items():  # fmt: skip
        found = REWINDINGS.find(text)
        assert (None if found is None else found[1]) == numbers
        assert resolved(Config(rewind=text)).rewind == text
    for text in (
        "step",
        "epoch",
        "step:",
        "step:x",
        "epoch:two",
        "lr:f",
        "sign:f",
        "none:3",
        "init:1",
        "step:-1",
        "step:1.5",
    ):
        with pytest.raises(UserError, match=f"^--rewind: unknown name '{text}'"):
            resolved(Config(rewind=text))


def test_structures_are_read() -> None:
    for text, numbers in {
        **{key: {} for key in ("unstructured", "per-output", "units")}, OWN: None, "2:4": {"n": 2, "m": 4},
        "4:4": {"n": 4, "m": 4}, "16x8": {"rows": 16, "columns": 8}, "8x16": {"rows": 8, "columns": 16},
    }.items():  # fmt: skip
        found = STRUCTURES.find(text)
        assert (None if found is None else found[1]) == numbers
        assert resolved(Config(structure=text)).structure == text
    for text in ("4:2", "0:4", "2:0", "0x4", "2x", "x2", "2-4", "2:4x", "rows"):
        with pytest.raises(UserError, match=f"^--structure: (unknown name|invalid value) '{text}'"):
            resolved(Config(structure=text))


def test_intervals_are_read_and_counted() -> None:
    assert parse_interval("never") == Interval(None, None)
    assert parse_interval("500") == Interval(500, None)
    assert parse_interval("999999999") == Interval(999_999_999, None)
    for text, seconds in {"30s": 30.0, "0s": 0.0, "0.125s": 0.125, "9999999s": 9_999_999.0}.items():
        assert parse_interval(text) == Interval(None, seconds)
    for text in ("0", "1000000000", "30", "05", "1.5", ".5s", "1.0000s", "10000000s", "30m", "s", "-1", "Never"):
        if text == "30":
            assert parse_interval(text).steps == 30
            continue
        with pytest.raises(UserError, match=f"^--checkpoint-every: invalid value '{text}'"):
            resolved(Config(checkpoint_every=text))
    assert [Interval(steps=5).after(step) for step in (0, 4, 5, 6, 10)] == [5, 5, 10, 10, 15]
    assert Interval(seconds=3.0).after(7) is None


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.5", [0.5]), ("1,0.5", None), ("0.9,0.5,0.1", [0.9, 0.5, 0.1]), ("0.5, 0.25", [0.5, 0.25]),
        ("0.5,0.5", None), ("0.1,0.2", None), ("0.5,0", None), ("0.5,-0.1", None), ("1.5,0.5", None), ("", None),
        ("a", None), ("0.5,", None), ("0.5;0.2", None), ("nan", None), ("0.999999", [0.999999]),
    ],
)  # fmt: skip
def test_lists_of_densities_fall(text: str, values: list[float] | None) -> None:
    if values is None:
        with pytest.raises(UserError, match=r"^--densities: .*falling numbers between 0 and 1"):
            listed(text)
        return
    assert listed(text) == values
    assert resolved(Config(densities=text, rounds=9)).rounds == len(values)


# ---- what goes together ----

#: (settings that don't go together, what is said, changes of which each makes them go together).
TOGETHER: list[Any] = [
    ({"epochs": 2, "steps": 9}, "--epochs and --steps: give one of them", [{"epochs": None}, {"steps": None}]),
    *(({"optimizer": name, "momentum": 0.5}, f"--momentum: requires --optimizer sgd or muon, not {name}",
       [{"momentum": 0.0}, {"optimizer": "sgd"}, {"optimizer": "muon"}, {"optimizer": OWN}])
      for name in ("adam", "adamw", "lion")),
    ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "--nesterov: takes --optimizer sgd with a --mom",
     [{"momentum": 0.5}, {"nesterov": False}]),
    ({"label_smoothing": 0.1, "loss": "mse"}, "--label-smoothing: requires --loss cross-entropy, not mse",
     [{"label_smoothing": 0.0}, {"loss": "auto"}, {"loss": "cross-entropy"}]),
    ({"density": 0.5, "densities": "0.5"}, "--density and --densities: give one",
     [{"density": None}, {"densities": None}]),
    ({"compact": True, "device": "cuda", "jobs": 2}, "--jobs: invalid value 2 .*1 with --compact",
     [{"compact": False}, {"device": "cpu"}, {"jobs": 1}, {"jobs": None}]),
    ({"executor": "slurm"}, "--executor: invalid value 'slurm' .*local, ray, or the address",
     [{"executor": "local"}, {"executor": "ray"}, {"executor": "ray://head-1.example:10001"}, {"executor": "ray://h:1"}]),
    ({"executor": "ray://h:123456"}, "--executor: ", [{"executor": "ray://h:12345"}]),
    ({"executor": "ray://h"}, "--executor: ", []),
    ({"energy": True, "executor": "ray"}, "--executor: invalid value 'ray' .*local with --energy",
     [{"energy": False}, {"executor": "local"}]),
    ({"country": "FRA"}, "--country: takes --energy with it", [{"country": None}, {"energy": True}]),
    ({"country": "FR", "energy": True}, "--country: invalid value 'FR' .*three letters",
     [{"country": "FRA"}, {"country": None}]),
    ({"country": "FRAN", "energy": True}, "--country: invalid value 'FRAN'", []),
    ({"country": "fra", "energy": True}, "--country: invalid value 'fra'", []),
    ({"energy": True, "jobs": 2}, "--jobs: invalid value 2 .*1 with --energy",
     [{"energy": False}, {"jobs": 1}, {"jobs": None}, {"device": "cuda"}]),
    ({"milestone": (3,)}, "--milestone: requires --schedule step", [{"milestone": ()}, {"schedule": "step"}]),
    ({"lr_final": 1e-9}, "--lr-final: requires --schedule step, cosine, .*, not constant",
     [{"lr_final": None}, *({"schedule": name} for name in SCHEDULES if name != "constant")]),
    ({"lr_final": 0.2, "lr": 0.1, "schedule": "cosine"}, "--lr-final: invalid value 0.2 .*from 0 to the --lr, 0.1",
     [{"lr_final": 0.1}, {"lr": 0.2}, {"lr_final": None}]),
    ({"layer_rate": {"a": 0.5}, "allocate": "uniform"}, "--layer-rate: requires --allocate layerwise",
     [{"layer_rate": {}}, {"allocate": "layerwise"}]),
    *(({"min_layer_weights": 1, "allocate": name},
       "--min-layer-weights: requires --allocate global, uniform, er, erk or balanced, not",
       [{"min_layer_weights": 0}, {"allocate": "global"}, {"allocate": "erk"}])
      for name in ("layerwise", "lamp", OWN)),
    *(({"allocate": "lamp", "score": name}, "--allocate: invalid value 'lamp' .*scores of at least 0",
       [{"allocate": "global"}, {"score": "magnitude"}, {"score": "snip"}, {"score": OWN}])
      for name in ("magnitude-increase", "movement", "grasp")),
    ({"exempt": ("fc1*",)}, "--exempt: requires --structure per-output, units, N:M or RxC, not unstr",
     [{"exempt": ()}, {"structure": "units"}, {"structure": "2:4"}]),
    ({"exempt": ("fc1*",), "structure": OWN}, "--exempt: requires --structure per-output, .*, not package",
     [{"exempt": ()}]),
    ({"control": ("reinit", "random-mask", "reinit")}, "--control: invalid value 'reinit, .*each control once",
     [{"control": ("reinit", "random-mask")}, {"control": ()}]),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "words", "changes"), TOGETHER, ids=[each[1][:30] for each in TOGETHER])
def test_settings_go_together_or_are_refused(
    settings: dict[str, Any], words: str, changes: list[dict[str, Any]]
) -> None:
    with pytest.raises(UserError, match=f"^{words}"):
        resolved(Config(**settings))
    for change in changes:
        resolved(Config(**{**settings, **change}))


def test_gaps_are_filled_by_the_catalogue() -> None:
    """For what is not in it: Adam at 1.2e-3 on batches of 60 for ten epochs; for another optimiser its own rate."""
    plain = resolved(Config(arch=OWN, dataset="data.module:load"))
    assert (plain.arch, plain.dataset, plain.augment) == (OWN, "data.module:load", False)
    assert (plain.optimizer, plain.lr, plain.batch_size, plain.epochs) == ("adam", 1.2e-3, 60, 10)
    assert (plain.momentum, plain.weight_decay, plain.steps) == (0.0, 0.0, None)
    rates = {
        "sgd": (0.05, 0.0),
        "adam": (1.2e-3, 0.0),
        "adamw": (1.2e-3, 0.0),
        "lion": (2e-4, 0.0),
        "muon": (0.02, 0.95),
    }
    rates |= {OWN: (1.2e-3, 0.0)}
    for name, (lr, momentum) in rates.items():
        found = resolved(Config(arch="resnet20" if name != "sgd" else "lenet5", dataset="cifar10", optimizer=name))
        assert (found.optimizer, found.lr, found.momentum, found.weight_decay) == (name, lr, momentum, 0.0)
        assert found.batch_size == (128 if name != "sgd" else 60)
    deep = resolved(Config(arch="resnet-20", dataset="CIFAR10"))
    assert (deep.arch, deep.dataset, deep.augment, deep.epochs) == ("resnet20", "cifar10", True, 30)
    assert (deep.optimizer, deep.lr, deep.momentum, deep.weight_decay, deep.batch_size) == ("sgd", 0.01, 0.9, 1e-4, 128)
    own = resolved(
        Config(arch="resnet20", dataset="cifar10", optimizer="sgd", lr=0.5, momentum=0.25, weight_decay=0.125,
               batch_size=7, augment=False, steps=11)
    )  # fmt: skip
    assert (own.lr, own.momentum, own.weight_decay, own.batch_size, own.augment) == (0.5, 0.25, 0.125, 7, False)
    assert (own.steps, own.epochs) == (11, None)
    assert resolved(Config(dataset="mnist")).augment is False
    assert resolved(Config(epochs=3)).epochs == 3
    with pytest.raises(UserError, match=r"^--arch: unknown name"):
        resolved(Config(arch="no-such-net"))


def test_a_density_is_reached_in_as_many_rounds() -> None:
    assert (1 - resolved(Config(density=0.1, rounds=4)).rate) ** 4 == pytest.approx(0.1)
    assert resolved(Config(density=0.1, rounds=0, rate=0.3)).rate == 0.3
    assert resolved(Config(rounds=3, rate=0.3)).rate == 0.3
    assert resolved(Config(densities=OWN, rounds=7)).rounds == 7
