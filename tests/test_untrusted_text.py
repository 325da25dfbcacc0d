"""What a stranger's run says: held to what such a file says, and printed as text alone."""

from __future__ import annotations

import ast
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import fuzz_runs
import pytest
from conftest import ROOT
from lthfunc_cli import console
from lthfunc_cli.main import main
from matplotlib.figure import Figure

from lthfunc.printable import printable
from lthfunc.reports.charts import Bars, Chart, Series
from lthfunc.reports.matplotlib_figures import panels, printed
from lthfunc.runs.json_lines import append_lines, line_of, value_of
from lthfunc.runs.lock import at_work, holder
from lthfunc.runs.verification import verified
from lthfunc.scheduling.progress import progress

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\x00\u202e"


pytestmark = pytest.mark.usefixtures("drawn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fuzz_runs.prepared(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, "run")
    return Path("run")


def test_harmed_files_are_one_line_and_never_a_traceback(run: Path, whole: Path) -> None:
    """Some of what `python tests/fuzz_runs.py` tries; each command succeeds on the whole run."""
    for command in fuzz_runs.READING:
        assert main(command.split()) == 0, command
    assert not (wrong := fuzz_runs.study(whole, tries=40, seed=7, commands=3)), "\n".join(wrong)


@pytest.mark.parametrize(
    "about",
    [
        {"pid": 10**30, "host": "x"}, {"pid": -1, "host": "x"}, {"pid": 0, "host": "x"}, {"pid": True, "host": "x"},
        {"pid": "1", "host": "x"}, {"pid": 1}, {"host": "x"}, {"pid": 1, "host": ESCAPES}, {"pid": 1.5, "host": "x"},
        [],
    ],
    ids=str,
)  # fmt: skip
def test_what_names_no_process_is_not_believed(tmp_path: Path, about: object) -> None:
    (tmp_path / ".holder.json").write_text(json.dumps(about))
    assert holder(tmp_path) is None
    assert not at_work(tmp_path)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"", b"\0", b"{}", b"null", b'{"time": 1e999}'])
def test_what_is_no_progress_is_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".progress.json").write_bytes(content)
    (tmp_path / ".holder.json").write_bytes(content)
    assert progress(tmp_path) is None
    assert holder(tmp_path) is None


def harmed_texts(value: Any) -> Any:
    """With escapes at the end of every text that may be any."""
    if isinstance(value, dict):
        return {name: harmed_texts(each) for name, each in value.items()}
    if isinstance(value, list):
        return [harmed_texts(each) for each in value]
    return value + ESCAPES if isinstance(value, str) else value


def test_lines_that_hold_something_else_are_damage_though_their_sums_are_right(run: Path) -> None:
    append_lines(run / "measured.jsonl", [{"kind": "energy", "round": -1}])
    append_lines(run / "environment.jsonl", [{"command": 3}])
    found = [f"{each.where}: {each.what}" for each in verified(run).problems]
    for name, what in (("environment.jsonl", "command: input"), ("measured.jsonl", "machine: field required")):
        assert sum(name in each and what in each for each in found) == 1, found


def test_nothing_that_a_terminal_obeys_is_printed(run: Path, capsys: Any) -> None:
    for name in ("environment.jsonl", "measured.jsonl"):
        lines = [value_of(line) for line in (run / name).read_text().splitlines()]
        (run / name).write_text("".join(f"{line_of(harmed_texts(line))}\n" for line in lines))
    for name in (".progress.json", ".holder.json"):
        (run / name).write_text(json.dumps(harmed_texts(json.loads((run / name).read_text()))))
    odd = Path(f"odd{ESCAPES}".replace("\0", ""))
    run.rename(odd)
    for command in (["info"], ["verify"], ["report", "--no-figures"], ["watch", "--once"], ["compare"], ["breakeven"],
                    ["config"], ["resume"], ["info", "--classes"]):  # fmt: skip
        main([command[0], str(odd), *command[1:]])
        told = "".join(capsys.readouterr())
        assert not [each for each in told if not each.isprintable() and each != "\n"], command
    assert b"\x1b" not in (odd / "report.html").read_bytes().partition(b"<script>")[0]


def test_consoles_print_texts_as_they_are(capsys: Any) -> None:
    from rich.table import Table

    table = Table(title=ESCAPES)
    table.add_column(ESCAPES)
    table.add_row(f"[bold]{ESCAPES}")
    console.screen().print(table)
    console.screen().print(f"[bold]{ESCAPES}")
    console.aside().print(ESCAPES)
    console.put(ESCAPES)
    console.say(ESCAPES)
    with console.warning_in_words():
        warnings.warn(ESCAPES, stacklevel=1)
    told = "".join(capsys.readouterr())
    assert "[bold]" in told
    assert not [each for each in told if not each.isprintable() and each != "\n"]
    assert printable("\u3000\xa0é漢 \x1b\ud800") == "\u3000\xa0é漢 \\x1b\\ud800"


def test_the_screen_is_written_to_by_one_module_alone() -> None:
    """But for JSON, in which `json.dumps` escapes what is not ASCII."""
    for path in (ROOT / "cli").rglob("*.py"):
        if path.name == "console.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("Console", "rich.print"), f"{path.name}:{node.lineno}"
            if name == "print":
                text = ast.unparse(node.args[0])
                known = ".dumps(" in text or (path.name, text) == ("benchmark.py", "err")
                assert known, f"{path.name}:{node.lineno}: {text}"


@pytest.mark.parametrize("name", [ESCAPES, "$x_{", "a$b$c", r"\frac", "$$"])
def test_names_are_drawn_as_text(name: str) -> None:
    """Nothing is a formula, and no character that no font has is warned of, with the terminal as its reader."""
    chart = Chart("key", name, name, name, [Series(name, [1.0, 2.0], [3.0, 4.0])] * 2, across=[(1.0, name)])
    bars = Bars("key", name, name, [name, "b"], [(name, [1.0, 2.0], None)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (printed(chart), printed(bars), panels([chart, chart], name)):
            assert isinstance(made, Figure)
            made.canvas.draw()


def test_paths_that_are_not_utf_8(run: Path, capsys: Any) -> None:
    odd = os.fsdecode(b"run-\xff-\xe9")
    run.rename(odd)
    for command in (
        ["info", odd], ["info", odd, "--json"], ["verify", odd], ["verify", odd, "--json"], ["report", odd],
        ["compare", odd], ["watch", odd, "--once"], ["breakeven", odd], ["resume", odd], ["config", odd],
        ["export", odd, "--to", "state-dict"], ["info", f"{odd}/seed0/round01/masks.safetensors"],
        ["transfer", odd, "--dataset", "digits", "--steps", "4", "--out", "moved"], ["info", "moved"],
        ["branch", odd, "--from-round", "0", "--rounds", "1", "--out", f"{odd}-branch"], ["verify", f"{odd}-branch"],
    ):  # fmt: skip
        code = main(command)
        assert code == 0, (command, capsys.readouterr().err)
    assert "run-" in Path(odd, "report.html").read_text()
