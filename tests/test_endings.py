"""What commands print at the end: tables that fit the screen, and commands that lead on."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from lthfunc_cli.main import main
from rich.console import Console
from rich.table import Table
from test_winner import line

from lthfunc.experiments.config import Config
from lthfunc.experiments.records import Record, Spread, summarize
from lthfunc.reports.methods import MethodPoint, method_table
from lthfunc.reports.run_comparison import ComparedRun, compared, comparison_table
from lthfunc.reports.tables import has_layers, layer_table, plain_table, result_table

LAYERS = {f"stage{n}.conv": 0.123 for n in range(9)}


def records(seeds: int, variants: int, layers: int) -> list[Record]:
    """Those of eleven rounds of a network with many weights."""
    names = ("ticket", "reinit", "random-mask")[:variants]
    items = [line(s, r, 0.98 - r * s / 1000, v) for s in range(seeds) for r in range(11) for v in names[: 1 + 2 * r]]
    for item in items:
        item.update(kept=1_234_567, total=12_345_678, early_stop_step=12_345 + item["seed"])
        item["layers"] = {f"{name}.weight": {"density": share} for name, share in list(LAYERS.items())[:layers]}
    return items


def printed(table: Table, width: int) -> list[str]:
    """The lines of a table on a screen, none of them too wide and no cell cut off."""
    console = Console(width=width, color_system=None, force_terminal=True, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    return [each.rstrip() for each in lines]


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize(("seeds", "variants", "layers"), [(1, 1, 2), (1, 1, 9), (3, 1, 2), (3, 3, 9)])
def test_the_table_of_results_has_what_matters_most(width: int, seeds: int, variants: int, layers: int) -> None:
    rows = summarize(records(seeds, variants, layers))
    lines = printed(result_table(rows, width), width)
    head, *body = lines[1:] if seeds > 1 else lines
    assert len(body) == len(rows)
    for words in ("round", "density %", "val acc %", "test acc %", *(["variant"] if variants > 1 else [])):
        assert words in head
    assert "weights left" in head or (seeds, width) == (3, 80)
    assert ("stage1.conv %" in head) == has_layers(rows, width) == (layers == 2 and width == 140)
    assert all(("±" in each) == (seeds > 1) for each in body)
    assert ("reinit" in "".join(body)) == (variants > 1)
    listed = printed(layer_table(rows, width), width)
    assert [each.split()[0] for each in listed[2:]] == list(LAYERS)[:layers]
    assert listed[1].split()[-2:] == ["round", "10"]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_tables_that_are_too_wide_are_turned(width: int) -> None:
    names = ["global", "layerwise-with-a-long-name", "other"]
    settings = [Config(allocate=name, lr=0.1 * place) for place, name in enumerate(names)]
    subjects = [ComparedRun(str(each.allocate), each, records(3, 1, 2), 1) for each in settings]
    text = "\n".join(printed(comparison_table(compared(subjects, "last", 0), "global"), width))
    for words in (*names, "test acc %", "search s", "difference %", "12,346 ± 1"):
        assert words in text
    assert "\nallocate " in text
    assert printed(comparison_table(compared(subjects, "last", 0), "global"), 220)[1].split()[:2] == ["run", "allocate"]
    narrow = plain_table("a", "b")
    narrow.add_row("1", "2")
    assert printed(narrow, width) == ["a  b", "1  2"]
    title = "what is measured, and how, in words that are wider than the table"
    headed = plain_table("a", "b", title=title)
    headed.add_row("1", "2")
    assert printed(headed, width) == [title, "a  b", "1  2"]
    seeds = {0: 0.89, 1: 0.9, 2: 0.91}
    methods = [
        MethodPoint(name, 0.05, 5, 0.05, seeds, Spread(0.9, 0.01), 1.0, 12.3, ("fc1",), 0.001)
        for name in ("iterative-random-balanced",)
    ]
    text = "\n".join(printed(method_table(methods, width), width))
    assert "90.00 ± 1.00" in text
    assert ("empty: fc1" in " ".join(text.split())) == (width == 140)


def commands(out: str) -> list[str]:
    """The commands that are suggested at the end."""
    after = out.partition("\nNext:\n")[2]
    return [each.strip() for each in after.splitlines() if each.startswith("  lthfunc ")]


def test_the_next_commands_work_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("my run")
    options = ["--steps", "20", "--engine", "eager", "--jobs", "1", "--threads", "1"]
    assert run("prune", *options, "--rounds", "1", "--control", "random-mask", "--out", folder) == 0
    report, again, specialize, export = commands(capsys.readouterr().out)
    assert report == "lthfunc report 'my run'"
    assert again == "lthfunc prune --config 'my run' --replicates 3 --control random-mask --control reinit"
    assert specialize == "lthfunc specialize 'my run'"
    assert export == "lthfunc export 'my run' --to state-dict"
    for command in (report, again, f"{specialize} --format sparse", export):  # other formats would compile for long
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    assert (folder / "report.html").exists()
    (made,) = Path("runs").iterdir()
    assert run("info", made, "--json") == 0
    about = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert (about["config"]["replicates"], about["config"]["control"]) == (3, ["random-mask", "reinit"])
    assert about["finished"]
    # What has been done is not suggested again; a branch is compared with its run.
    assert run("resume", made) == 0
    assert [each.split()[1] for each in commands(capsys.readouterr().out)] == ["report", "specialize", "export"]
    assert run("branch", folder, "--from-round", "0", "--rewind", "reinit", "--out", "branch") == 0
    assert f"lthfunc compare '{folder.resolve()}' branch" in commands(capsys.readouterr().out)
    assert run("train", *options, "--out", "dense") == 0
    assert commands(capsys.readouterr().out)[1] == "lthfunc prune --config dense --rounds 5"
    assert run("prune", *options, "--rounds", "0", "--out", "none") == 0
    assert commands(capsys.readouterr().out)[1] == "lthfunc prune --config none --rounds 5"


def test_all_layers_are_shown_where_they_are_wanted(tmp_path: Path, capsys: Any) -> None:
    assert (
        run(
            "prune",
            "--arch",
            "resnet20",
            "--engine",
            "eager",
            "--steps",
            "2",
            "--rounds",
            "1",
            "--layers",
            "--out",
            tmp_path / "run",
        )
        == 0
    )
    assert "density per layer, %" in capsys.readouterr().out
    for wanted in (True, False):
        assert run("info", tmp_path / "run", *(["--layers"] if wanted else [])) == 0
        assert ("density per layer, %" in capsys.readouterr().out) == wanted


@pytest.mark.parametrize("width", [80, 100, 140])
def test_an_error_on_a_terminal_wraps_at_words(width: int, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        assert main(["methods", "--method", "imp-oneshot"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert "synflow-shuffled, synflow-reinit" in " ".join(line.strip() for line in lines)
        assert (len(lines) > 1) == terminal
        assert not terminal or max(map(len, lines)) <= width
