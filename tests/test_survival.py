"""Runs that survive damage: what is found, told and trained again."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from lthfunc_cli.main import main
from test_runs import SMALL, same_files

import lthfunc as lf
from lthfunc.errors import DamagedError
from lthfunc.runs.folder import read_run
from lthfunc.runs.json_lines import append_lines, line_of, read_lines, value_of
from lthfunc.runs.verification import verified


@pytest.fixture(scope="module", name="finished")
def a_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert run("prune", *SMALL, "--control", "reinit", "--rewind", "step:10", "--out", folder) == 0
    return folder


@pytest.fixture(name="damaged")
def a_damaged_run(finished: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder)
    return folder


def said(capsys: Any) -> list[str]:
    lines: list[str] = capsys.readouterr().err.splitlines()
    return lines


def files_of(folder: Path) -> list[str]:
    """Every file of a run but pictures, which are drawn again, and the lock."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".png" and path.name != ".lock"
    )  # fmt: skip


OUTCOME = ["last_round.safetensors", "winning_ticket.safetensors", "winning_ticket_trained.safetensors"]
FILES = [
    "config.toml", "environment.jsonl", *OUTCOME[:1], "metrics.jsonl", "seed0/anchor.safetensors",
    "seed0/round00/manifest.json",
    "seed0/round00/masks.safetensors", "seed0/round00/params.safetensors", "seed0/round01-reinit/manifest.json",
    "seed0/round01-reinit/masks.safetensors", "seed0/round01-reinit/params.safetensors",
    "seed0/round01/manifest.json", "seed0/round01/masks.safetensors", "seed0/round01/params.safetensors",
    "seed0/round02-reinit/manifest.json", "seed0/round02-reinit/masks.safetensors",
    "seed0/round02-reinit/params.safetensors", "seed0/round02/manifest.json", "seed0/round02/masks.safetensors",
    "seed0/round02/params.safetensors", *OUTCOME[1:],
]  # fmt: skip


def test_these_are_all_files(finished: Path) -> None:
    assert files_of(finished) == FILES
    assert main(["verify", str(finished)]) == 0


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_bit_anywhere_is_found(damaged: Path, file: str, capsys: Any) -> None:
    """At many places of every file: verify says so, in one line, with exit code 3; the other rounds stay good."""
    path = damaged / file
    payload = path.read_bytes()
    for number in range(12):
        last = len(payload) - 1  # without its line break the last line counts for nothing, and that is no damage
        place, bit = (number * 7919 + 13) % last if number else last - 1, number % 8
        harmed = bytearray(payload)
        harmed[place] ^= 1 << bit
        path.write_bytes(harmed)
        try:
            report = verified(damaged)
        except DamagedError:  # the first line, which says what the run is
            assert file == "metrics.jsonl"
            continue
        if file == "config.toml" and not report.problems:  # a comment, or a setting that changes no result
            continue
        assert report.problems, (place, bit)
        names = {each.where for each in report.problems}
        assert any(file.startswith(name) or name.startswith(file) for name in names), names
    path.write_bytes(payload)
    assert not verified(damaged).problems


#: Every kind of file flipped; cut, emptied and deleted one of each kind.
HARM = [
    *((name, "flipped") for name in FILES if name != "config.toml" and "round00/m" not in name and "02-re" not in name),
    *((name, how) for how in ("truncated", "empty", "missing") for name in (
        "environment.jsonl", "metrics.jsonl", "seed0/anchor.safetensors", "seed0/round01/manifest.json",
        "seed0/round02/masks.safetensors", "seed0/round01-reinit/params.safetensors", *OUTCOME,
    )),
]  # fmt: skip


def _usual(file: str, how: str) -> bool:
    """Whether no other harm stands for it: a file that is cut for an empty one, a round's files for another round's."""
    other_round = file.startswith(("seed0/round01-reinit", "seed0/round02/"))
    return file == "metrics.jsonl" or not (how == "empty" or (how == "flipped" and other_round))


@pytest.mark.parametrize(
    ("file", "how"), [each if _usual(*each) else pytest.param(*each, marks=pytest.mark.long) for each in HARM]
)
def test_resume_mends_what_is_damaged_to_the_same_bits(
    finished: Path, damaged: Path, file: str, how: str, capsys: Any
) -> None:
    path = damaged / file
    payload = path.read_bytes()
    middle = payload.find(b"\n", len(payload) // 2) - 40 if file == "metrics.jsonl" else len(payload) // 2
    harm = {
        "flipped": payload[:middle] + bytes([payload[middle] ^ 4]) + payload[middle + 1 :],
        "truncated": payload[:middle],
        "empty": b"",
    }
    path.unlink()
    if how != "missing":
        path.write_bytes(harm[how])
    lost = file == "metrics.jsonl" and how in ("empty", "missing")
    code = run("resume", damaged)
    lines = said(capsys)
    if lost:
        assert code in (2, 3)
        assert len(lines) == 1
        return
    assert code == 0, lines
    assert read_run(damaged)[2] != []
    assert [{key: value for key, value in item.items() if key != "seconds"} for item in read_run(damaged)[2]] == [
        {key: value for key, value in item.items() if key != "seconds"} for item in read_run(finished)[2]
    ]
    same_files(damaged, finished)
    assert not verified(damaged).problems
    if file != "environment.jsonl" and (file, how) != ("metrics.jsonl", "truncated"):
        assert any(line.startswith("damaged: ") for line in lines)


def test_tickets_that_a_crash_came_before_are_no_damage(damaged: Path, finished: Path, capsys: Any) -> None:
    """They are written after the last training's line; one that is missing beside others was lost."""
    for name in OUTCOME:
        (damaged / name).unlink()
    assert run("resume", damaged) == 0
    assert not [line for line in said(capsys) if line.startswith("damaged: ")]
    assert files_of(damaged) == FILES
    same_files(damaged, finished)


def test_a_checkpoint_that_a_crash_left_of_a_finished_training_goes(damaged: Path, finished: Path) -> None:
    content = (damaged / "seed0/round01/params.safetensors").read_bytes()
    name = f"checkpoint-000000035-{hashlib.sha256(content).hexdigest()}.safetensors"
    (damaged / "seed0" / "round02-reinit" / name).write_bytes(content)
    assert run("verify", damaged) == 0
    assert run("resume", damaged) == 0
    assert files_of(damaged) == FILES
    same_files(damaged, finished)


def test_settings_stay_as_the_run_began(damaged: Path, finished: Path, capsys: Any) -> None:
    text = (damaged / "config.toml").read_text()
    for harm, told in (("rate = 0.2", "rate = 0.3"), ("steps = 40", "steps ="), ("[[", "")):
        (damaged / "config.toml").write_text(text.replace(harm, told) if told else harm)
        assert run("resume", damaged) == 3
        (line,) = said(capsys)
        assert "config.toml" in line
        assert "lthfunc resume writes it again" in line
        assert run("verify", damaged) == 3
    (damaged / "config.toml").unlink()
    assert run("resume", damaged) == 0
    assert (damaged / "config.toml").read_text() == text
    (damaged / "config.toml").write_text(text.replace('checkpoint_every = "30s"', 'checkpoint_every = "7"'))
    assert run("resume", damaged, "--jobs", "2") == 0
    assert read_run(damaged)[1].jobs == 2
    same_files(damaged, finished)


def test_damage_is_told_by_every_command_that_would_read_it(damaged: Path, capsys: Any) -> None:
    path = damaged / "seed0" / "round02" / "params.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    for command in (
        ["specialize", damaged, "--round", "2"],
        ["export", damaged, "--to", "scipy", "--round", "2"],
        ["branch", damaged, "--from-round", "2", "--rounds", "3", "--out", damaged.parent / "b"],
    ):
        assert run(*map(str, command)) == 3, command
        (line,) = [line for line in said(capsys) if line.startswith("lthfunc: ")]
        assert "params.safetensors: is damaged" in line
    assert run("verify", damaged) == 3
    out = capsys.readouterr().out
    assert "seed0/round02/params.safetensors: is not what was written" in out
    assert "seed 0: intact rounds: 0 to 1" in out
    assert run("verify", damaged, "--json") == 3
    assert json.loads(capsys.readouterr().out)["good_rounds"] == {"0": [0, 1]}


def test_verify_looks_into_files_whose_sums_are_right(damaged: Path, capsys: Any) -> None:
    """A run whose writer was wrong, not its disk: masks that don't nest, weights where they are pruned."""
    from lthfunc.runs.manifests import sum_of, write_manifest

    place = damaged / "seed0" / "round02"
    params, about = lf.load_tree(place / "params.safetensors")
    masks, also = lf.load_tree(place / "masks.safetensors")
    before = lf.load_tree(damaged / "seed0" / "round01" / "masks.safetensors")[0]["masks"]["fc1.weight"]
    masks["masks"]["fc1.weight"][tuple((~before).nonzero()[0])] = True
    params["params"]["fc2.weight"][tuple((~masks["masks"]["fc2.weight"]).nonzero()[0])] = 1.0
    lf.save_tree(place / "params.safetensors", params, about)
    lf.save_tree(place / "masks.safetensors", masks, also)
    sums = {path.name: sum_of(path.read_bytes()) for path in place.glob("*.safetensors")}
    write_manifest(place, sums)
    assert run("verify", damaged) == 3
    out = capsys.readouterr().out
    assert "fc2.weight has pruned weights that are not zero" in out
    assert "the mask of fc1.weight keeps weights that the round before had pruned" in out
    assert "its masks keep 32,129 of 50,200 weights, its record says 32,128" in out


def test_other_formats_are_refused(damaged: Path, capsys: Any) -> None:
    about = read_lines(damaged / "metrics.jsonl")[0]
    for number in (1, 99, "3"):
        (damaged / "metrics.jsonl").write_text(line_of({**about, "format": number}) + "\n")
        for command in ("resume", "info", "verify"):
            assert run(command, damaged) == 2
            (line,) = said(capsys)
            assert f"its files have format {number!r}, but this version of lthfunc reads formats 2 to 5" in line
    (damaged / "metrics.jsonl").write_text(json.dumps(about) + "\n")
    assert run("info", damaged) == 3
    assert "its first line, which says what the run is, is damaged: it has no checksum at its end" in said(capsys)[0]


def test_lines_know_their_own_sums(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    items: list[dict[str, Any]] = [{"a": 1.5, "b": [None, 'x, "sha256": "y"}']}, {"c": float("inf")}]
    append_lines(path, items)
    assert read_lines(path) == items
    for text in path.read_text().splitlines():
        for place in range(len(text)):
            with pytest.raises(ValueError, match=r"^its? "):
                value_of(text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :])
