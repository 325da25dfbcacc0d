"""Settings out of text, schemas, spaces and recipes, and which of them must be trusted."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

import pytest

from lthfunc.catalog.recipes import RECIPES
from lthfunc.errors import UserError
from lthfunc.experiments import recipes
from lthfunc.experiments.config import SETTINGS, Config
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping, json_schema, setting_value
from lthfunc.experiments.sweeps import Range, config_of, corners, space_of, trials_of
from lthfunc.experiments.trust import check_trust, code_in, places_in
from lthfunc.plugins import is_own

OWN = "module:function"


def test_settings_are_read_from_text_by_their_types() -> None:
    assert (setting_value("rounds", "7"), setting_value("lr", "1e-3")) == (7, 1e-3)
    assert (setting_value("arch", "7"), setting_value("nesterov", "true")) == ("7", True)
    assert setting_value("nesterov", "false") is False
    for name, text, words in (
        ("rounds", "7.5", "a whole number"), ("lr", "x", "a number"), ("nesterov", "yes", "true or false"),
        ("eval_every", "", "a whole number"),
        ("control", "reinit", "a setting with a single value"),
        ("layer_rate", "a=0.5", "a setting with a single value"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')}: invalid value '{text}' \(expected {words}"):
            setting_value(name, text)
    assert tuple(asdict(Config())) == tuple(SETTINGS)


def test_the_schema_says_what_is_chosen_from() -> None:
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (schema["title"], schema["additionalProperties"]) == ("lthfunc configuration", False)
    properties = schema["properties"]
    assert properties["weight_decay"]["description"] == "Weight decay."
    assert not any("title" in kind for kind in properties.values())
    for name, setting in SETTINGS.items():
        if not setting.choices:
            continue
        kind = properties[name]
        if setting.holds is list:
            assert kind["type"] == "array"
            kind = kind["items"]
        if setting.listed:
            assert re.fullmatch(kind["pattern"], ",".join(setting.offers))
            continue
        if "anyOf" in kind:
            names, *_, pattern = kind["anyOf"]
            assert setting.own
            assert pattern["type"] == "string"
            assert is_own(OWN) == (pattern["pattern"].startswith("^") and pattern["pattern"].endswith("$"))
        else:
            names = kind
            assert not setting.own
        assert names["enum"] == list(setting.choices if setting.names is None else setting.names.spelled()[0])
        assert "type" not in names


@pytest.mark.parametrize(
    ("settings", "code", "places"),
    [
        ({"arch": "torchvision:resnet18"}, set(), set()),
        ({"arch": "timm:vit"}, set(), set()),
        ({"arch": "timm:hf-hub:some/net"}, set(), {"arch"}),
        ({"arch": "torchvision:a:b"}, set(), set()),
        ({"dataset": "timm:a:b"}, {"dataset"}, set()),
        ({"arch": "net.module:Net"}, {"arch"}, set()),
        ({"arch": "hf:net"}, {"arch"}, set()),
        ({"dataset": "hf:some/set"}, set(), {"dataset"}),
        ({"dataset": "npz:x.npz"}, set(), set()),
        ({"dataset": "folder:x"}, set(), set()),
        ({"dataset": "text:x"}, set(), set()),
        ({"dataset": "C:/x.safetensors"}, set(), set()),
        ({"dataset": "C:/x.npz"}, {"dataset"}, set()),
        ({"arch": "timm:vit", "arch_option": {"checkpoint_path": "x", "pretrained": True, "depth": 3}},
         {"arch_option.checkpoint_path", "arch_option.pretrained"}, set()),
        ({"arch": "timm:vit", "arch_option": {"pretrained_cfg": "x", "pretrained_cfg_overlay": "y", "cache_dir": "z"}},
         {"arch_option.pretrained_cfg", "arch_option.pretrained_cfg_overlay", "arch_option.cache_dir"}, set()),
        ({"arch": "lenet5", "arch_option": {"pretrained": True}}, set(), set()),
        ({"arch": "timm:vit", "arch_option": "pretrained"}, set(), set()),
        *(({name: "m:f"}, {name}, set()) for name, each in SETTINGS.items() if each.own),
        ({"weights": "net.pth"}, {"weights"}, set()),
        ({"weights": "net.safetensors"}, set(), set()),
        ({"rewind": "step:5", "structure": "2:4", "score": 5}, set(), set()),
        ({"data_dir": "s3://x"}, set(), {"data_dir"}),
        ({"data_dir": "//server/share"}, set(), {"data_dir"}),
        ({"data_dir": "\\\\server\\share"}, set(), {"data_dir"}),
        ({"data_dir": "file:\\\\server\\share"}, set(), {"data_dir"}),
        ({"data_dir": "folder:\\x"}, set(), set()),
        ({"data_dir": "/a//b"}, set(), set()),
        ({"dataset_option": {"test": "http://x", "size": 3}}, set(), {"dataset_option.test"}),
        ({"wandb": True}, set(), {"wandb"}),
        ({"wandb": False}, set(), set()),
        ({"wandb": "yes"}, set(), set()),
    ],
)  # fmt: skip
def test_code_and_places_are_told_from_what_is_ours(settings: dict[str, Any], code: set[str], places: set[str]) -> None:
    assert set(code_in(settings)) == code
    assert set(places_in(settings)) == places
    check_trust(settings, "run", trusted=True)
    named = sorted(code or places)
    if not named:
        check_trust(settings, "run", trusted=False)
        return
    words = "the settings (import code|read pickled weights):" if code else "the settings connect to"
    with pytest.raises(UserError, match=f"^run: {words} {named[0].partition('.')[0]}"):
        check_trust(settings, "run", trusted=False)
    check_trust(settings, "run", trusted=False, typed=[name.partition(".")[0] for name in named])


def test_spaces_are_lists_and_ranges() -> None:
    space = space_of(
        "--search", ["lr=1e-4..1e-1", "batch-size=10..99", "optimizer=sgd,adam", "cycles=2..20"], ranges=True
    )
    assert space == {
        "lr": Range(1e-4, 1e-1, False), "batch_size": Range(10, 99, True), "optimizer": ["sgd", "adam"],
        "cycles": Range(2, 20, True),
    }  # fmt: skip
    assert {name: each.log for name, each in space.items() if isinstance(each, Range)} == {
        "lr": True, "batch_size": False, "cycles": True,
    }  # fmt: skip
    assert not Range(0.0, 5.0, False).log
    assert not Range(-1.0, 5.0, False).log
    first, last = corners(space)
    assert first == {"lr": 1e-4, "batch_size": 10, "optimizer": "sgd", "cycles": 2}
    assert last == {"lr": 1e-1, "batch_size": 99, "optimizer": "adam", "cycles": 20}
    assert [type(each["batch_size"]) for each in (first, last)] == [int, int]
    assert [type(each["lr"]) for each in (first, last)] == [float, float]
    assert space_of("--grid", ["weights=a..b"], ranges=False) == {"weights": ["a..b"]}
    grid = space_of("--grid", ["lr=0.1,0.2", "batch_size=5,6"], ranges=False)
    assert [tuple(trial.values()) for trial in trials_of(grid)] == [(0.1, 5), (0.1, 6), (0.2, 5), (0.2, 6)]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["lr"], "SETTING=VALUES, e.g. lr=1e-4..1e-1 or optimizer=sgd,adam"),
        (["lr="], "SETTING=VALUES"),
        (["rate=0.1", "rate=0.2"], "each setting once"),
        (["no=1"], "unknown name 'no'"),
        (["optimizer=adam..sgd"], "values, since optimizer is not a number, e.g. optimizer=A,B"),
        (["nesterov=false..true"], "values, since nesterov is not a number"),
        (["lr=0.1..0.1"], "a range whose second number is larger"),
        (["lr=0.2..0.1"], "a range whose second number is larger"),
        (["lr=0.1..inf"], "a range whose second number is larger"),
        (["lr=-inf..1"], "a range whose second number is larger"),
        (["lr=nan..1"], "a range whose second number is larger"),
    ],
)
def test_spaces_that_are_none_are_refused(texts: list[str], words: str) -> None:
    with pytest.raises(UserError, match=f"^--search: .*{words}"):
        space_of("--search", texts, ranges=True)
    if texts == ["lr"]:
        with pytest.raises(UserError, match=r"e.g. lr=0.01,0.001\)$"):
            space_of("--grid", texts, ranges=False)


def test_a_trials_settings_win_and_steps_stand_for_epochs() -> None:
    shared = Config(epochs=3, lr=0.5)
    found = config_of(shared, {"steps": 7})
    assert (found.steps, found.epochs, found.lr) == (7, None, 0.5)
    found = config_of(Config(steps=7), {"epochs": 2, "lr": 0.25})
    assert (found.steps, found.epochs, found.lr) == (None, 2, 0.25)
    assert config_of(shared, {}).epochs == 3
    with pytest.raises(UserError, match=r"^--rate: invalid value 2.0"):
        config_of(shared, {"rate": 2.0})


# ---- recipes ----

#: By the papers: Frankle & Carbin 2019, fig. 2 and sec. 4; Frankle et al. 2020, table 1; Zagoruyko & Komodakis 2016.
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0001, "batch_size": 128}
TWENTY = {"rounds": 20, "rate": 0.2}
PUBLISHED: dict[str, dict[str, Any]] = {
    "lth-lenet": {
        **TWENTY, "arch": "lenet300", "dataset": "mnist", "optimizer": "adam", "lr": 0.0012, "batch_size": 60,
        "steps": 50000, "allocate": "layerwise", "layer_rate": {"fc3*": 0.1},
    },
    "lth-conv": {
        **TWENTY, "arch": "conv4", "dataset": "cifar10", "optimizer": "adam", "lr": 0.0003, "batch_size": 60,
        "steps": 25000, "allocate": "layerwise", "layer_rate": {"features*": 0.1, "fc3*": 0.1}, "augment": "none",
    },
    "lth-resnet18": {
        **SGD, **TWENTY, "arch": "resnet20", "dataset": "cifar10", "lr": 0.01, "steps": 30000, "schedule": "step",
        "milestone": [20000, 25000], "augment": "flip-crop",
    },
    "lth-vgg19": {
        **SGD, **TWENTY, "arch": "vgg19", "dataset": "cifar10", "batch_size": 64, "lr": 0.1, "warmup": 10000,
        "steps": 112000, "schedule": "step", "milestone": [56000, 84000], "augment": "flip-crop",
    },
    "rewind-resnet20": {
        **SGD, **TWENTY, "arch": "resnet20", "dataset": "cifar10", "lr": 0.03, "warmup": 30000, "steps": 63000,
        "schedule": "step", "milestone": [31000, 47000], "rewind": "step:2000", "augment": "flip-crop",
    },
    "rewind-vgg16": {
        **SGD, **TWENTY, "arch": "vgg16", "dataset": "cifar10", "lr": 0.1, "steps": 63000, "schedule": "step",
        "milestone": [31000, 47000], "rewind": "step:2000", "augment": "flip-crop",
    },
    "wide-resnet": {
        **SGD, "arch": "wrn-28-10", "dataset": "cifar10", "nesterov": True, "weight_decay": 0.0005, "lr": 0.1,
        "epochs": 200, "schedule": "step", "augment": "flip-crop",
    },
    "fast-cifar": {
        "arch": "conv6", "dataset": "cifar10", "optimizer": "sgd", "momentum": 0.85, "nesterov": True,
        "weight_decay": 0.0015, "batch_size": 500, "lr": 0.05, "epochs": 10, "schedule": "triangular",
        "label_smoothing": 0.2, "augment": "flip-crop",
    },
    "transformer": {
        "arch": "char-transformer", "optimizer": "adamw", "lr": 0.001, "weight_decay": 0.1, "batch_size": 32,
        "schedule": "cosine", "warmup": 100,
    },
}  # fmt: skip


def test_recipes_have_the_papers_numbers() -> None:
    assert {name: recipes.settings_of(name) for name in RECIPES} == PUBLISHED
    for name, plain in PUBLISHED.items():
        resolved(from_mapping({"dataset": "digits", **plain}))
        assert len(RECIPES[name].about.split()) > 4
    assert RECIPES["lth-vgg19"].source == "Frankle & Carbin 2019, sec. 4"
    assert RECIPES["rewind-vgg16"].source == "Frankle et al. 2020, table 1"
    recipes.settings_of("lth-lenet")["lr"] = 9.0  # a copy
    assert recipes.settings_of("lth-lenet") == PUBLISHED["lth-lenet"]
    with pytest.raises(UserError, match=r"^--recipe: unknown name 'lth'"):
        recipes.settings_of("lth")
