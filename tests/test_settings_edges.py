"""Settings at their edges: what each takes and what it just does not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.pruning import REWINDINGS, STRUCTURES
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

OWN = "module:function"


# ---- ranges ----

#: (setting, values at its ends that it takes, values just beyond, what it says that it takes).
RANGES: list[tuple[str, list[Any], list[Any], str]] = [
    ("rounds", [0, 10_000], [-1, 10_001], "a whole number from 0 to 10,000"),
    ("rate", [1e-300, 1 - 1e-16], [0.0, 1.0], "a number between 0 and 1, both excluded"),
    ("density", [1e-300, 1 - 1e-16], [0.0, 1.0], "a number between 0 and 1, both excluded"),
    ("min_layer_weights", [0, 10**12], [-1, 10**12 + 1], "a whole number from 0 to 1,000,000,000,000"),
    ("group_multiple", [1, 2**20], [0, 2**20 + 1], "a whole number from 1 to 1,048,576"),
    ("layer_rate", [{"a": 0.0}, {"a": 1 - 1e-16}], [{"a": -0.1}, {"a": 1.0}],
     r"a table of names, each with a number in \[0, 1\)"),
    ("epochs", [1, 1_000_000], [0, 1_000_001], "a whole number from 1 to 1,000,000"),
    ("steps", [1, 100_000_000], [0, 100_000_001], "a whole number from 1 to 100,000,000"),
    ("batch_size", [1, 10_000_000], [0, 10_000_001], "a whole number from 1 to 10,000,000"),
    ("lr", [1e-300, 1e9], [0.0, -1.0], "a number above 0"),
    ("lr_final", [0.0, 1e9], [-1e-9], "a number of at least 0"),
    ("momentum", [0.0, 1 - 1e-16], [-1e-9, 1.0], r"a number in \[0, 1\)"),
    ("weight_decay", [0.0, 1e9], [-1e-9], "a number of at least 0"),
    ("clip_norm", [1e-300, 1e9], [0.0, -1.0], "a number above 0"),
    ("accumulate", [1, 10_000], [0, 10_001], "a whole number from 1 to 10,000"),
    ("sam", [1e-300, 1e9], [0.0], "a number above 0"),
    ("lookahead", [1, 10_000], [0], "a whole number from 1 to 10,000"),
    ("ema", [1e-300, 1 - 1e-16], [0.0, 1.0], "a number between 0 and 1, both excluded"),
    ("milestone", [(1,), (100_000_000,)], [(0,), (5, 100_000_001)],
     "a list, each a whole number from 1 to 100,000,000"),
    ("cycles", [1, 1_000_000], [0, 1_000_001], "a whole number from 1 to 1,000,000"),
    ("warmup", [0, 100_000_000], [-1, 100_000_001], "a whole number from 0 to 100,000,000"),
    ("score_rounds", [1, 10_000], [0, 10_001], "a whole number from 1 to 10,000"),
    ("update_every", [1, 100_000_000], [0, 100_000_001], "a whole number from 1 to 100,000,000"),
    ("update_until", [1e-300, 1 - 1e-16], [0.0, 1.0], "a number between 0 and 1, both excluded"),
    ("drop_fraction", [0.0, 1 - 1e-16], [-1e-9, 1.0], r"a number in \[0, 1\)"),
    ("gradient_weight", [0.0, 1e9], [-1e-9], "a number of at least 0"),
    ("min_salient", [0.0, 1.0], [-1e-9, 1 + 1e-15], r"a number in \[0, 1\]"),
    ("backward_density", [1e-300, 1.0], [0.0, 1 + 1e-15], r"a number in \(0, 1\]"),
    ("shrinkage", [1e-300, 1e9], [0.0], "a number above 0"),
    ("rescale_every", [1, 100_000_000], [0, 100_000_001], "a whole number from 1 to 100,000,000"),
    ("particles", [2, 1000], [1, 1001], "a whole number from 2 to 1,000"),
    ("gate_rate", [1e-300, 1e9], [0.0], "a number above 0"),
    ("label_smoothing", [0.0, 1 - 1e-16], [-1e-9, 1.0], r"a number in \[0, 1\)"),
    ("distill_weight", [0.0, 1.0], [-1e-9, 1 + 1e-15], r"a number in \[0, 1\]"),
    ("temperature", [1e-300, 1e9], [0.0], "a number above 0"),
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
    assert from_mapping({"scope": "erk", "rounds": 2}) == Config(allocate="erk", rounds=2)
    with pytest.raises(UserError, match="configuration: unknown name 'compile'"):
        from_mapping({"compile": True})
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
            taker = next((key for key, each in METHODS.items() if name in each.takes), "imp")
            changes |= {"method": taker} if name in METHODS.settings else {}
            resolved(Config(**changes, lr_final=None))
        for value in ("no-such", *([] if takes_own else [OWN])):
            changes = {name: (value,) if SETTINGS[name].holds is list else value}
            with pytest.raises(UserError, match=f"^--{name.replace('_', '-')}: unknown name {value!r}"):
                resolved(Config(**changes))


def test_metrics_are_names_numbers_and_functions() -> None:
    for name in ("auto", "accuracy", "r2", "top-1", "top-10", OWN, "file.py:f"):
        resolved(Config(metric=name))
    for name in ("top-0", "top-", "top-1x", "top-05", "acc"):
        with pytest.raises(UserError, match=f"^--metric: (unknown name|invalid value) '{name}'"):
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
        with pytest.raises(UserError, match=f"^--rewind: (unknown name|invalid value) '{text}'"):
            resolved(Config(rewind=text))


def test_structures_are_read() -> None:
    for text, numbers in {
        **{key: {} for key in ("unstructured", "per-output", "units", "heads", "residual", "groups")}, OWN: None,
        "2:4": {"n": 2, "m": 4}, "4:4": {"n": 4, "m": 4}, "16x8": {"rows": 16, "columns": 8},
        "8x16": {"rows": 8, "columns": 16},
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
        with pytest.raises(UserError, match=r"^--densities: .*decreasing numbers between 0 and 1"):
            listed(text)
        return
    assert listed(text) == values
    assert resolved(Config(densities=text, rounds=9)).rounds == len(values)
