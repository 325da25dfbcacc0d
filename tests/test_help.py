"""What a user reads first: help and lists on narrow and wide screens, and examples that work as typed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.commands import COMMANDS
from lthfunc_cli.console import aside, put_parts
from lthfunc_cli.main import app, main
from lthfunc_cli.network_counts import Counted
from rich.text import Text
from typer.main import get_command

from lthfunc.catalog.data_sets import DATASETS
from lthfunc.catalog.methods import METHODS
from lthfunc.catalog.networks import NETWORKS
from lthfunc.catalog.recipes import RECIPES
from lthfunc.reports.tables import plain_table

BY_NAME = {name: about for group in COMMANDS.values() for name, about in group.items()}
EXAMPLES = [(name, example) for name, about in BY_NAME.items() for example in about.examples]
#: Examples that take no more than about a second on the run below.
CHEAP = (
    "info", "watch runs/RUN --once", "compare", "verify", "recipes", "datasets", "config", "methods --list", "import",
    "breakeven 1e-3", "archs resnet20",
)  # fmt: skip
WIDTHS = (80, 100, 140)


def shown(width: int, *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[str]:
    """The lines that a command prints on a terminal of this width, none of which is wider or cut off."""
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)  # read once, when that file is imported: here
    for name, value in {"COLUMNS": str(width), "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    assert main([*arguments]) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_help_lists_all_commands_on_one_screen(width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lines = shown(width, "--help", monkeypatch=monkeypatch, capsys=capsys)
    assert len(lines) <= 40
    assert any(line.endswith("--show-completion, --help.") for line in lines)
    for group, commands in COMMANDS.items():
        at = next(number for number, line in enumerate(lines) if line.startswith(f"{group}  "))
        rows = [line.removeprefix(group).strip() for line in lines[at : at + len(commands)]]
        assert [re.split(r" {2,}", row) for row in rows] == [[name, about.line] for name, about in commands.items()]
    assert {*BY_NAME} == {*get_command(app).commands}  # type: ignore[attr-defined]


def test_a_narrow_screen_has_whole_names(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    lines = shown(40, "--help", monkeypatch=monkeypatch, capsys=capsys)
    for group, commands in COMMANDS.items():
        at = lines.index(group)
        assert lines[at + 1].split()[0] == next(iter(commands))
        assert {*commands} <= {line.split()[0] for line in lines[at:] if line}
    assert "…" not in "".join(lines[1:])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", BY_NAME)
def test_the_help_of_a_command_has_its_options_and_examples_whole(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    lines = shown(width, name, "--help", monkeypatch=monkeypatch, capsys=capsys)
    for example in BY_NAME[name].examples:
        assert f" $ {example}" in lines
    command: Any = get_command(app)
    loaded = command.commands[name].loaded
    words = {*re.split(r"[\s,]+", " ".join(lines))}
    written = " ".join(str(text) for each in loaded.params for text in (each.help, each.show_default, each.metavar))
    cut = {word.strip("()[],.;") for word in words if word.strip("()[],.;").endswith("…")}
    assert cut <= {
        *re.split(r"[\s,()]+", f"{written} {loaded.help} {name}"),
        *(f"{each.metavar}…" for each in loaded.params),
    }
    options = {each.opts[0] for each in loaded.params if not each.hidden}
    assert {each for each in options if each.startswith("-")} <= words
    assert not [line for line in lines if re.search(r"<[a-z\[\]]+>", line)], "names of Python's types"
    usage = next(line for line in lines if line.startswith(" Usage: "))
    assert re.fullmatch(rf" Usage: .* {name} \[OPTIONS\]( \[?[A-Z]+…?\]?)*", usage)
    if name == "prune":
        assert re.findall(r"╭─ (.*?) ─", "\n".join(lines))[:3] == ["Options", "Most used", "Network and data"]


@pytest.mark.parametrize("name", BY_NAME)
def test_the_help_of_a_command_is_whole_on_a_narrow_screen(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Words too long for a line go on in the next one, so spaces don't count."""
    command: Any = get_command(app)
    loaded = command.commands[name].loaded
    for width in (20, 79):
        text = "".join("".join(shown(width, name, "--help", monkeypatch=monkeypatch, capsys=capsys)).split())
        assert "│" not in text
        for part in (*loaded.help.split("\n\n"), *(f"$ {each}" for each in BY_NAME[name].examples)):
            assert "".join(Text.from_markup(part).plain.split()) in text
        for each in loaded.params:
            default = f"default: {each.show_default}" if isinstance(each.show_default, str) else ""
            names = [each.metavar] if each.param_type_name == "argument" else [*each.opts, each.metavar or ""]
            for part in () if each.hidden else (each.help or "", default, *names):
                assert "".join(Text.from_markup(part).plain.split()) in text


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("command", "names"),
    [("archs", NETWORKS), ("datasets", DATASETS), ("recipes", RECIPES), ("methods --list", METHODS)],
)
def test_lists_show_every_name_on_any_screen(
    command: str, names: Any, width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(
        "lthfunc_cli.network_counts.counted", lambda name, *_: Counted(name, (), 10, 36_479_194, 36_461_232, 5 * 10**9)
    )
    lines = shown(width, *command.split(), monkeypatch=monkeypatch, capsys=capsys)
    assert not [line for line in lines if "…" in line]
    starts = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert starts[1 : 1 + len(names)] == list(names)
    text = " ".join(" ".join(lines).split())
    for name, entry in names.items():
        assert all(word in text for word in entry.about.split()), name


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: two finished runs and a checkpoint."""
    folder = tmp_path_factory.mktemp("examples")
    words = ["prune", "--rounds", "1", "--rate", "0.1", "--steps", "40", "--engine", "eager", "--out"]
    assert main([*words, str(folder / "runs" / "RUN")]) == 0
    shutil.copytree(folder / "runs" / "RUN", folder / "runs" / "OTHER")
    torch.save({"fc1.weight": torch.ones(2, 3)}, folder / "net.pth")
    masks: dict[str, Any] = {"fc1.weight": np.eye(3, dtype=bool)}
    np.savez(folder / "masks.npz", **masks)
    return folder


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_examples_work_as_typed(
    name: str, example: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """All are taken by the command's own parser; those that take a moment run."""
    words = shlex.split(example)
    ours = words[words.index("lthfunc") + 1 :]  # after variables of the environment
    monkeypatch.chdir(place)
    group: Any = get_command(app)
    with group.make_context("lthfunc", [*ours]) as context:
        group.commands[ours[0]].make_context(ours[0], ours[1:], parent=context)
    if example.partition(" ")[2].startswith(CHEAP):
        assert main(ours) == 0, capsys.readouterr().err
    assert ours[0] == name or name == "recipes"


def test_a_pipe_gets_each_sentence_as_one_line(capsys: Any) -> None:
    """And words with brackets as they are, since lists have names of files."""
    assert main(["archs", "lenet5"]) == 0
    (own,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Your own: ")]
    assert own.endswith(", and returns an nn.Module.")
    words = "long " * 99 + "[bold] planted:x: 8,000"  # which Rich has a picture for
    put_parts(words, "", plain_table(":x:"))
    aside().print(":x:")
    shown = capsys.readouterr()
    assert (shown.out.splitlines(), shown.err) == ([words, "", ":x:"], ":x:\n")


@pytest.mark.parametrize(("encoding", "least"), [("ascii", "12?12"), ("latin-1", "12×12"), ("utf-8", "12×12")])
def test_what_a_locale_does_not_have_is_a_question_mark(encoding: str, least: str, tmp_path: Path) -> None:
    """As of an ellipsis, which the usage has, in Latin 1: there were tracebacks."""
    for words, told in ((["archs", "lenet5"], f" {least} "), (["archs", "--help"], "archs [OPTIONS] [NAME")):
        command = [sys.executable, "-m", "lthfunc", *words]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, b"")
        assert told in done.stdout.decode(encoding)


def paths_of(command: Any, *words: str) -> list[tuple[str, ...]]:
    """The words that give each option and argument of a command that takes a path an empty one."""
    if hasattr(command, "commands"):
        return [each for name, inner in command.commands.items() for each in paths_of(inner, *words, name)]
    named = [each for each in command.params if each.metavar in ("FILE", "FOLDER", "PATH", "DIR", "RUN")]
    needed = ["x" for each in command.params if each.param_type_name == "argument" and each.required]
    return [
        (*words, "") if each.param_type_name == "argument" else (*words, *needed, each.opts[0], "") for each in named
    ]


@pytest.mark.parametrize("name", BY_NAME)
def test_an_empty_path_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As of a shell variable that is not set: it was the working directory, or no option at all."""
    monkeypatch.chdir(tmp_path)
    command: Any = get_command(app)
    for words in paths_of(command.commands[name].loaded, name):
        assert main([*words]) == 2
        assert " invalid value '' (expected a " in capsys.readouterr().err, words
    assert not list(tmp_path.iterdir())
