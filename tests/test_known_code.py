"""Whose code is imported without being asked for: that of its own user, while it is unchanged."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from test_survival import said

from lthfunc.errors import UserError
from lthfunc.experiments import known_code
from lthfunc.experiments.trust import check_trust

STRANGER = """
import pathlib
pathlib.Path("stranger-was-here").touch()
import torch


def Net(shape, classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


def score(params, masks):
    return {name: params[name].abs() for name in masks}
"""


def forget() -> None:
    """So that the module is imported again."""
    for name in [name for name in sys.modules if name.startswith("lthfunc_user_stranger")]:
        del sys.modules[name]


def test_code_that_a_run_names_is_imported_for_who_has_used_it_and_else_on_trust_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--rounds", "1", "--steps", "4", "--engine", "eager"]
    mine, other = str(tmp_path / "mine"), str(tmp_path / "somebody")  # two users
    for settings in ({"arch": "stranger.py:Net"}, {"score": "stranger.py:score"}):
        Path("stranger.py").write_text(STRANGER)
        shutil.rmtree("run", ignore_errors=True)
        forget()
        typed = [part for name, value in settings.items() for part in (f"--{name}", value)]
        monkeypatch.setenv("LTHFUNC_CACHE", mine)
        assert run("prune", *small, *typed, "--out", "run") == 0  # typed, so trusted
        (named,) = settings.values()
        lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
        Path("run/metrics.jsonl").write_text("".join(lines[:2]))
        uses: list[list[str]] = [
            ["resume", "run"], ["prune", "--config", "run/config.toml", "--out", "x"], ["specialize", "run"],
            ["branch", "run", "--from-round", "0", "--out", "x"], ["info", "run", "--classes"],
            ["transfer", "run", "--dataset", "digits", "--out", "x"], ["export", "run", "--to", "scipy"],
            ["methods", "--config", "run/config.toml", "--density", "0.1"],
            ["connectivity", "--config", "run/config.toml"],
        ]  # fmt: skip

        def refused(commands: list[list[str]], words: str, named: str = f"{next(iter(settings))} = {named!r}") -> None:
            forget()
            Path("stranger-was-here").unlink(missing_ok=True)
            for command in commands:
                capsys.readouterr()
                assert run(*command) == 2, command
                (told,) = [line for line in said(capsys) if line.startswith("lthfunc: ")]
                assert f"{words}: {named}; check it, then allow it with --trust" in told
                assert not Path("stranger-was-here").exists(), command
                assert not Path("x").exists()

        monkeypatch.setenv("LTHFUNC_CACHE", other)
        refused(uses, "the settings import code")
        assert run("verify", "run") == 0
        assert run("info", "run") == 0
        assert not Path("stranger-was-here").exists()
        monkeypatch.setenv("LTHFUNC_CACHE", mine)
        for command in (uses[0], uses[6]):  # the code's own user is not asked
            forget()
            assert run(*command) == 0
            assert Path("stranger-was-here").exists()
        Path("stranger.py").write_text(f"{STRANGER}\n")
        refused(uses, "the settings import code that has changed since you used it")
        monkeypatch.setenv("LTHFUNC_CACHE", other)
        assert run("resume", "run", "--trust") == 0
        assert Path("stranger-was-here").exists()
        assert run("export", "run", "--to", "scipy") == 0  # which was trusted


def test_known_code_is_known_by_its_files_function_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    Path("apart.py").write_text("WIDTH = 5\n")
    Path("package").mkdir()
    Path("package/net.py").write_text(
        "import torch\nfrom apart import WIDTH\n\n\ndef net(classes, width=WIDTH):\n    return torch.nn.Sequential("
        "torch.nn.Flatten(), torch.nn.Linear(64, width), torch.nn.Linear(width, classes))\n\n\nsame = net\n"
    )
    words = ["train", "--arch", "package.net:net", "--steps", "1", "--engine", "eager"]
    assert run(*words, "--arch-option", "width=7", "--out", "run") == 0
    config = {"arch": "package.net:net", "arch_option": {"width": "7"}, "weights": None}
    check_trust(config, "run", trusted=False)
    for changed in ({"arch": "package.net:same"}, {"arch_option": {"width": "8"}}, {"loss": "package.net:net"},
                    {"arch": "package.more:net"}, {"arch": "absent:net"}, {"weights": "net.pth"}):  # fmt: skip
        with pytest.raises(UserError, match=r"the settings (import code|read pickled weights): "):
            check_trust(config | changed, "run", trusted=False)
    Path("apart.py").write_text("WIDTH = 6\n")  # which the network imports
    with pytest.raises(UserError, match="import code that has changed since you used it: arch"):
        check_trust(config, "run", trusted=False)
    (tmp_path / "cache" / "code.json").write_text("{")
    with pytest.raises(UserError, match="the settings import code: arch"):
        check_trust(config, "run", trusted=False)


def test_what_another_command_records_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTHFUNC_CACHE", str(tmp_path / "cache"))
    record, net = tmp_path / "cache" / "code.json", tmp_path / "net.py"
    seen = list[dict[str, dict[str, str]]]()
    net.touch()
    read = known_code._read

    def then_another_writes() -> dict[str, dict[str, str]]:
        found = read()
        if not seen:
            record.parent.mkdir()
            record.write_text(json.dumps({"another": {"its file": "its sum"}}))
        seen.append(found)
        return found

    monkeypatch.setattr(known_code, "_read", then_another_writes)
    known_code.remember({"arch": [f"{net}:Net"]}, {})
    assert seen[0] == {}
    assert len(json.loads(record.read_text())) == 2
