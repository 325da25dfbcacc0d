"""One schema for options, files and run folders, and what it exports."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from lthfunc_cli.main import main

from lthfunc.catalog.pruning import SCORES
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, RenamedSettingWarning
from lthfunc.experiments.schema import from_mapping
from lthfunc.experiments.sweeps import space_of
from lthfunc.experiments.trust import code_in
from lthfunc.runs.toml_files import read_config


def exported(capsys: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["config", "--schema"]) == 0
    schema: dict[str, Any] = json.loads(capsys.readouterr().out)
    return schema


def test_the_exported_schema_has_every_setting_with_its_default_range_and_words(capsys: Any) -> None:
    schema = exported(capsys)
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert list(properties) == [item.name for item in fields(Config)]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(Config()).items()}
    for name, kind in properties.items():
        assert kind.get("default", {}) == plain[name], name
        assert len(kind["description"]) > 10, name
    rounds = properties["rounds"]["anyOf"][0]
    assert (rounds["minimum"], rounds["maximum"]) == (0, 10_000)
    assert properties["rate"]["exclusiveMinimum"] == 0
    names, own = properties["score"]["anyOf"]
    assert names["enum"] == list(SCORES)
    assert "pattern" in own
    assert properties["control"]["items"]["enum"][0] == "reinit"


def bounds(kind: dict[str, Any]) -> dict[str, Any]:
    """The numeric side of a property."""
    inner = next((each for each in kind.get("anyOf", []) if each.get("type") in ("integer", "number")), kind)
    return inner if inner.get("type") in ("integer", "number") else {}


def test_every_number_has_a_range_and_is_held_to_it(capsys: Any) -> None:
    numbers = {name: bounds(kind) for name, kind in exported(capsys)["properties"].items() if bounds(kind)}
    assert len(numbers) >= 18
    for name, kind in numbers.items():
        step = 1 if kind["type"] == "integer" else 1e-9
        low = kind["minimum"] if "minimum" in kind else kind["exclusiveMinimum"] + step
        from_mapping({name: low})
        outside: list[Any] = [low - 2 * step, math.nan, math.inf, "1", True, [1]]
        if "maximum" in kind or "exclusiveMaximum" in kind:
            outside.append(kind["maximum"] + step if "maximum" in kind else kind["exclusiveMaximum"])
        for value in outside:
            with pytest.raises(UserError, match=rf"^--{name.replace('_', '-')}: invalid value .* \(expected a "):
                from_mapping({name: value})


def test_a_file_is_checked_and_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(
        'arch = "lenet5"\ndataset = "mnist"\nlayer_rate = {"fc*" = 0.1}\nallocate = "layerwise"\n'
    )
    assert main(["config", "mine.toml"]) == 0
    Path("filled.toml").write_text(capsys.readouterr().out)
    config = read_config("filled.toml")
    assert (config.arch, config.batch_size, config.lr, config.layer_rate) == ("lenet5", 60, 1.2e-3, {"fc*": 0.1})
    assert main(["config", "filled.toml"]) == 0
    assert capsys.readouterr().out == Path("filled.toml").read_text()
    assert main(["config"]) == 0
    Path("defaults.toml").write_text(capsys.readouterr().out)
    assert read_config("defaults.toml").rounds == 5
    Path("mine.toml").write_text("learning_rate = 3\n")
    assert main(["config", "mine.toml"]) == 2
    assert "unknown name 'learning_rate'" in capsys.readouterr().err


def test_former_names_work_everywhere_and_name_the_present_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old = {"scope": "layerwise", "floor": 2, "keep": ["a"]}
    new = Config(allocate="layerwise", min_layer_weights=2, never_prune=("a",))
    assert from_mapping(old) == new  # run folders; nobody can change what they hold, so nobody is told
    Path("old.toml").write_text("floor = 3")
    assert main(["prune", "--scope", "global", "--allocate", "erk"]) == 2
    assert "scope and allocate are the same setting; keep allocate" in capsys.readouterr().err
    assert main(["prune", "--config", "old.toml", "--keep", "fc3*", "--rounds", "1", "--density", "2"]) == 2
    told = capsys.readouterr().err
    assert "--keep (keep in files) is now called --never-prune (never_prune in files)\n" in told
    assert "--floor (floor in files) is now called --min-layer-weights" in told
    with pytest.warns(RenamedSettingWarning, match="now called --min-layer-weights"):
        assert space_of("--grid", ["floor=1,2"], ranges=False) == {"min_layer_weights": [1, 2]}
    assert main(["prune", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--never-prune" in told
    assert "--keep" not in told
    assert main(["prune", "--scop", "erk"]) == 2
    assert "--scope" not in capsys.readouterr().err  # nor is it suggested
    Path("run").mkdir()
    Path("run/config.toml").write_text("floor = 3")  # as a run that began under the former name has it
    assert main(["config", "run"]) == 0
    assert "floor" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"arch": "lenet5", "dataset": "mnist", "rewind": "step:500", "structure": "2:4"}, set()),
        ({"arch": "torchvision:resnet18", "dataset": "folder:photos"}, set()),
        ({"arch": "timm:vit", "dataset": "file.safetensors", "densities": "0.5,0.2"}, set()),
        ({"arch": "net.py:Net", "dataset": "data.module:load", "score": "a.b:c"}, {"arch", "dataset", "score"}),
        ({"arch": "odd name.py:f", "dataset": "../x.py:f", "rewind": "m:f"}, {"arch", "dataset", "rewind"}),
        ({"loss": "m:f", "metric": "m.py:f", "optimizer": "m:f", "densities": "m:f"},
         {"loss", "metric", "optimizer", "densities"}),
    ],
)  # fmt: skip
def test_names_of_code_are_known_from_other_names(settings: dict[str, str], named: set[str]) -> None:
    assert set(code_in(settings)) == named


def test_what_is_decided_for_open_settings_is_explained(capsys: Any) -> None:
    command = "config --explain --arch lenet300 --density 0.25 --rounds 2 --steps 10 --seed 3"
    assert main(f"{command} --json".split()) == 0
    found = {each["setting"]: each for each in json.loads(capsys.readouterr().out)}
    assert "steps" not in found
    assert "seed" not in found
    assert {name: found[name]["value"] for name in ("optimizer", "rate", "device", "loss", "engine", "eval_every")} == {
        "optimizer": "adam", "rate": 0.5, "device": "cpu", "loss": "cross-entropy", "engine": "eager", "eval_every": 2,
    }  # fmt: skip
    assert found["lr"]["reason"] == "the default of lenet300"
    assert found["rate"]["reason"] == "leaves --density 0.25 after 2 rounds"
    assert found["engine"]["reason"] == (
        "all trainings take 30 steps, and compiling pays off from 3,000; "
        "what earlier runs compiled does not count, so that equal commands give equal bits"
    )
    assert main(f"{command} --device cpu".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["setting", "value", "reason"]
    assert [line.split()[0] for line in lines[1:]] == [name for name in found if name != "device"]
