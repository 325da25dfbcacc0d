"""A setting is declared in one place: options, files, schemas and rules follow from there."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
from conftest import ROOT
from lthfunc_cli.main import app
from typer.main import get_command

from docs.lists import settings
from lthfunc.experiments.config import SETTINGS
from lthfunc.experiments.settings.setting import settings_of

#: Two settings as somebody would add them: a number that results depend on, and a name that none does.
ADDED = """
    sharpness: Share | None = setting(
        None, "How sharp minima may be.", TRAINING, ("prune", "train"), default="any", instead_of=("lr",)
    )
    murmur: tuple[str, ...] = setting(
        (), "What to say meanwhile.", TRAINING, ("prune",), choices=("little", "lots"), own=True, changes_results=False
    )
"""

#: What is then asked of the copy; help and mistakes in options without torch.
ASKED = """
import contextlib, io, json, sys
from pathlib import Path
from lthfunc_cli.main import main

def said(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    return code, out.getvalue() + err.getvalue()

found = {command: said(command, "--help")[1] for command in ("prune", "train", "resume", "methods")}
found["schema"] = json.loads(said("config", "--schema")[1])["properties"]
found["near option"] = said("prune", "--sharpnes", "1")
found["bad number"] = said("prune", "--sharpness", "2")
found["bad name"] = said("prune", "--murmur", "litle")
assert "torch" not in sys.modules
Path("typo.toml").write_text("sharpnes = 0.5")
found["near key"] = said("config", "typo.toml")
Path("own.toml").write_text("sharpness = 0.5\\nmurmur = ['my.module:say']")
found["toml"] = said("config", "own.toml")
found["untrusted"] = said("train", "--config", "own.toml")
from lthfunc_cli.experiment import merged
from lthfunc_cli.options import Sources
from lthfunc.experiments.config import FREE, SETTINGS, to_mapping
from lists import settings as page
from lthfunc.experiments.sweeps import config_of, space_of
Path("plain.toml").write_text("lr = 0.1\\nsharpness = 0.25\\nmurmur = ['lots']")
found["merged"] = to_mapping(merged("prune", Sources({"sharpness": 0.5}, None, "plain.toml")))
found["trained"] = to_mapping(merged("train", Sources({}, None, "plain.toml")))
found["space"] = space_of("--grid", ["sharpness=0.1,0.2"], ranges=False)
found["trial"] = to_mapping(config_of(merged("prune", Sources({})), {"sharpness": 0.25}))
found["free"] = sorted(FREE)
found["told"] = [name for name, each in SETTINGS.items() if each.is_difference]
found["page"] = page()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a copy of the library says once the two settings stand in one file of it."""
    place = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "lthfunc", place / "lthfunc", ignore=ignored)
    shutil.copytree(ROOT / "cli", place / "lthfunc_cli", ignore=ignored)
    path = place / "lthfunc" / "experiments" / "settings" / "training.py"
    source = path.read_text().replace("TRAINING, Part,", "TRAINING, Part, Share,")
    head, mark, rest = source.partition("    batch_size: Annotated[")
    assert mark
    path.write_text(head + ADDED.lstrip("\n") + mark + rest)
    done = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=place, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(place), str(ROOT / "docs")]), "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_new_setting_is_an_option_of_its_commands(found: dict[str, Any]) -> None:
    assert "How sharp minima may be. [default: any]" in found["prune"]
    assert "--sharpness" in found["train"]
    assert "--sharpness" not in found["resume"] + found["methods"]
    assert "--murmur" in found["prune"]
    assert "--murmur" not in found["train"] + found["methods"]
    assert "--murmur" in found["resume"]  # since it changes no result
    assert found["near option"][0] == found["bad number"][0] == found["bad name"][0] == 2
    assert "--sharpness" in found["near option"][1]
    assert "--sharpness: invalid value 2.0" in found["bad number"][1]
    assert "a number between 0 and 1, both excluded" in found["bad number"][1]
    assert (
        "--murmur: unknown name 'litle'; did you mean 'little'? (expected one of little, lots)" in found["bad name"][1]
    )


def test_a_new_setting_is_in_schemas_files_and_the_page(found: dict[str, Any]) -> None:
    sharpness, murmur = found["schema"]["sharpness"], found["schema"]["murmur"]
    assert sharpness["description"] == "How sharp minima may be."
    assert (sharpness["anyOf"][0]["exclusiveMaximum"], sharpness["default"]) == (1, None)
    assert murmur["items"]["anyOf"][0]["enum"] == ["little", "lots"]
    assert "did you mean 'sharpness'" in found["near key"][1]
    assert found["toml"][0] == 0
    assert "sharpness = 0.5" in found["toml"][1]
    assert "| `sharpness` | a number between 0 and 1, both excluded | any | How sharp minima may be. |" in found["page"]
    assert "| `murmur` | little, lots |" in found["page"]


def test_a_new_setting_keeps_the_rules(found: dict[str, Any]) -> None:
    assert found["untrusted"][0] == 2
    assert "the settings import code: murmur" in found["untrusted"][1]
    assert (found["merged"]["sharpness"], "lr" in found["merged"], found["merged"]["murmur"]) == (0.5, False, ["lots"])
    assert found["trained"]["murmur"] == []  # of `prune` alone
    assert found["trained"]["sharpness"] == 0.25
    assert found["space"] == {"sharpness": [0.1, 0.2]}
    assert found["trial"]["sharpness"] == 0.25
    assert "murmur" in found["free"]
    assert "sharpness" not in found["free"]
    assert "sharpness" in found["told"]
    assert "murmur" not in found["told"]


def test_completion_offers_what_was_declared() -> None:
    options = {each.name: each for each in get_command(app).commands["prune"].loaded.params}  # type: ignore[attr-defined]
    for setting in settings_of(SETTINGS, "prune"):
        offered = options[setting.name].type_descriptor.parameter_info.autocompletion
        expected = setting.offers if setting.names is not None else setting.choices or setting.offers
        assert (list(offered("")) if offered else []) == list(expected), setting.name


def test_commands_take_what_is_declared_of_them() -> None:
    known: dict[str, set[str]] = {}

    def walk(command: Any, path: tuple[str, ...]) -> None:
        command = getattr(command, "loaded", command)
        known[" ".join(path)] = {option for each in command.params for option in each.opts}
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))

    walk(get_command(app), ())
    for setting in SETTINGS.values():
        for command in setting.commands:
            assert setting.option in known[command], (setting.name, command)


def test_the_page_of_settings_is_up_to_date() -> None:
    message = "write it again: python docs/lists.py"
    assert (ROOT / "docs" / "reference" / "settings.md").read_text("utf-8") == settings(), message


def test_no_list_of_settings_is_kept_by_hand() -> None:
    for path in [*(ROOT / "lthfunc").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        if path.parent.name == "settings":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, (ast.Tuple, ast.List, ast.Set)):
                continue
            texts = [each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            named = [text for text in texts if text.removeprefix("--").replace("-", "_") in SETTINGS]
            assert len(named) < 3, f"{path}:{node.lineno}: {named}"
