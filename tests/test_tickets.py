"""The winning ticket, its trained weights and the last round: three files, each what its name says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run

import lthfunc as lf
from lthfunc.runs.folder import read_run
from lthfunc.runs.json_lines import line_of
from lthfunc.runs.manifests import read_manifest, sum_of, write_manifest
from lthfunc.runs.ticket_files import LAST, WINNING, WINNING_TRAINED, initial_weights
from lthfunc.runs.tickets import tickets_of_run
from lthfunc.runs.verification import verified

BASE = ["prune", "--engine", "eager", "--jobs", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def middle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two seeds whose round 2 of 3 wins: the last leaves too little."""
    folder = tmp_path_factory.mktemp("runs") / "middle"
    assert run(*BASE, "--steps", "30", "--densities", "0.8,0.6,0.002", "--replicates", "2", "--out", folder) == 0
    return folder


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that goes on training what is left: --rewind none."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    assert run(*BASE, "--steps", "60", "--rounds", "2", "--rewind", "none", "--out", folder) == 0
    return folder


def reached(ticket: lf.Ticket) -> float:
    """The test accuracy of a ticket, by plain PyTorch: LeNet-300-100 with its weights as they are."""
    data = lf.data.load("digits")
    x = data.test.x.flatten(1)
    for layer in ("fc1", "fc2", "fc3"):
        x = torch.nn.functional.linear(x, ticket.params[f"{layer}.weight"], ticket.params[f"{layer}.bias"])
        x = x if layer == "fc3" else x.relu()
    return float((x.argmax(1) == data.test.y).float().mean())


def test_the_round_that_won_is_the_winning_ticket_and_the_last_one_is_not(middle: Path, capsys: Any) -> None:
    assert run("info", middle, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert (about["winning_round"], about["last_round"]) == (2, 3)
    for place, seed in (("", 0), ("seed0/", 0), ("seed1/", 1)):
        anchor, _ = lf.load_tree(middle / f"seed{seed}/anchor.safetensors")
        for name, number, which in ((WINNING, 2, None), (WINNING_TRAINED, 2, "params"), (LAST, 3, "params")):
            ticket, told = lf.load_ticket(middle / f"{place}{name}")
            folder = middle / f"seed{seed}/round0{number}"
            masks = lf.load_tree(folder / "masks.safetensors")[0]["masks"]
            weights = anchor["params"] if which is None else lf.load_tree(folder / "params.safetensors")[0]["params"]
            assert lf.same_bits(ticket.masks, masks)
            assert lf.same_bits(ticket.params, lf.apply_masks(weights, masks))
            assert (told["seed"], told["round"], told["step"]) == (seed, number, 0 if which is None else 30)
            assert told["weights"] == ("before training" if which is None else "after training")


def test_every_command_takes_the_trained_winning_ticket_and_says_so(middle: Path, capsys: Any) -> None:
    assert run("info", middle) == 0
    out = capsys.readouterr().out
    files = out.partition(f"Files in {middle}:\n")[2].splitlines()
    assert "  seed*/                              the same of each seed; above: the first's" in files
    assert max(map(len, files)) <= 80
    assert f"{WINNING}          winning ticket: round 2 before training" in out
    assert f"{WINNING_TRAINED}  trained ticket: round 2 after training" in out
    assert f"{LAST}              last round: round 3 after training" in out
    words = {
        (): "round 2 of 3 of seed 0, the winning ticket, its trained weights",
        ("--round", "winning", "--seed", "1"): "round 2 of 3 of seed 1, the winning ticket, its trained weights",
        ("--round", "last"): "round 3 of 3 of seed 0, the last, its trained weights",
        ("--round", "1"): "round 1 of 3 of seed 0, its trained weights",
        ("--initial",): "round 2 of 3 of seed 0, the winning ticket, its weights before training",
    }
    files = {(): WINNING_TRAINED, ("--round", "last"): LAST, ("--initial",): WINNING}
    for options, told in words.items():
        path = middle.parent / "exported.pt"
        assert run("export", middle, "--to", "state-dict", *options, "--out", path) == 0
        assert told in " ".join(capsys.readouterr().out.split())
        if options in files:
            ticket, _ = lf.load_ticket(middle / files[options])
            state = torch.load(path, weights_only=True)
            assert all(torch.equal(state[name], leaf) for name, leaf in ticket.params.items())
    assert run("export", middle, "--to", "state-dict", "--round", "lats") == 2
    assert "--round: invalid value 'lats' (expected a round's number, winning or last)" in capsys.readouterr().err
    assert run("export", middle, "--to", "state-dict", "--round", "0", "--initial") == 2


def test_files_of_two_seeds_get_two_names(middle: Path, tmp_path: Path) -> None:
    shutil.copytree(middle, tmp_path / "run")
    for seed in ("0", "1"):
        assert run("export", tmp_path / "run", "--to", "state-dict", "--seed", seed) == 0
    assert len(list((tmp_path / "run").glob("*state-dict.pt"))) == 2


def test_without_rewinding_the_trained_network_is_what_commands_take(tuned: Path) -> None:
    """Its weights before training are the pruned network of the round before, untrained since."""
    _, _, records = read_run(tuned)
    won = max(item["round"] for item in records)
    trained, last = (lf.load_ticket(tuned / name)[0] for name in (WINNING_TRAINED, LAST))
    before = lf.load_tree(tuned / f"seed0/round0{won - 1}/params.safetensors")[0]["params"]
    ticket, _ = lf.load_ticket(tuned / WINNING)
    assert lf.same_bits(ticket.params, lf.apply_masks(before, ticket.masks))
    assert lf.same_bits(trained, last)
    (taken,) = tickets_of_run(tuned, [None], None, None)
    assert lf.same_bits(taken.ticket, trained)
    # Every step is looked at or the last one has the least loss: then the record is the last parameters' accuracy.
    item = records[-1]
    assert item["early_stop_step"] == item["final_step"]
    assert reached(trained) == pytest.approx(item["test_accuracy"])
    assert reached(ticket) < reached(trained)


def test_no_winner_leaves_the_last_round_alone(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "none"
    assert run(*BASE, "--steps", "20", "--rounds", "1", "--density", "0.002", "--out", folder) == 0
    out = capsys.readouterr().out
    assert "No pruned round won: the best of them, round 1, reaches a validation accuracy of" in out
    assert f"{LAST} last round: round 1 after training" in " ".join(out.split())
    assert WINNING not in out
    assert sorted(path.name for path in folder.glob("*.safetensors")) == [LAST]
    assert run("export", folder, "--to", "state-dict", "--round", "winning") == 2
    assert "no pruned round of" in capsys.readouterr().err
    assert run("export", folder, "--to", "state-dict") == 0
    assert "round 1 of 1, the last; no round won, its trained weights" in " ".join(capsys.readouterr().out.split())
    # A file that claims otherwise is found, and goes.
    shutil.copy(folder / LAST, folder / WINNING)
    assert [each.where for each in verified(folder).problems] == [WINNING]
    assert run("resume", folder) == 0
    assert not (folder / WINNING).exists()


@pytest.mark.parametrize("kept", [1, 3])
def test_a_run_cut_off_ends_with_the_same_files(tuned: Path, tmp_path: Path, kept: int) -> None:
    """Lines of metrics.jsonl are lost as in a crash; and one between the last line and the files at the top."""
    folder = tmp_path / "cut"
    shutil.copytree(tuned, folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[: 1 + kept]))
    for name in (WINNING, LAST):
        (folder / name).unlink()
    assert bool(verified(folder).problems) == (kept == 3)
    assert run("resume", folder) == 0
    for path in tuned.rglob("*.safetensors"):
        assert (folder / path.relative_to(tuned)).read_bytes() == path.read_bytes()
    assert not verified(folder).problems


def as_format_2(folder: Path) -> None:
    """Make a run what the version before would have left: one file, with the last round's ticket."""
    _, _, records = read_run(folder)
    last = max(item["round"] for item in records)
    ticket, about = initial_weights(folder, 0, last)
    about.pop("initial")
    lf.save_ticket(folder / "ticket.safetensors", ticket, about)
    shutil.copy(folder / "ticket.safetensors", folder / "seed0/ticket.safetensors")
    for name in (WINNING, WINNING_TRAINED, LAST):
        (folder / name).unlink(missing_ok=True)
    for item in records:
        place = folder / f"seed0/round0{item['round']}"
        (place / "initial.safetensors").unlink(missing_ok=True)
        for name in ("params.safetensors", "masks.safetensors"):
            tree, told = lf.load_tree(place / name)
            told.pop("initial", None)
            lf.save_tree(place / name, tree, told)
        sums = {name: sum_of((place / name).read_bytes()) for name in ("params.safetensors", "masks.safetensors")}
        above = "../ticket.safetensors" if item["round"] else "../anchor.safetensors"
        stale = item["round"] not in (0, last)
        sums[above] = sum_of(b"an earlier one") if stale else sum_of((place / above).read_bytes())
        write_manifest(place, sums)
    first, *rest = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    header = {**json.loads(first), "format": 2}
    del header["sha256"]
    (folder / "metrics.jsonl").write_text("".join([line_of(header) + "\n", *rest]))


def test_runs_of_format_2_are_read_checked_and_gone_on_with(tuned: Path, tmp_path: Path, capsys: Any) -> None:
    old = tmp_path / "old"
    shutil.copytree(tuned, old)
    as_format_2(old)
    report = verified(old)
    assert (report.run.format, report.problems) == (2, [])
    assert run("info", old) == 0
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "ticket.safetensors round 2 before training (older version)" in said
    assert said[-1] == f"Not written: {WINNING}, {WINNING_TRAINED}, {LAST}; to write them: lthfunc resume {old}"
    (trained,) = tickets_of_run(old, [None], None, None)
    assert lf.same_bits(trained.ticket, lf.load_ticket(tuned / WINNING_TRAINED)[0])
    (first,) = tickets_of_run(old, ["last"], None, None, trained=False)
    assert lf.same_bits(first.ticket, lf.load_ticket(tuned / WINNING)[0])
    assert run("export", old, "--to", "state-dict", "--round", "1", "--initial") == 2
    assert "did not keep the weights that round 1 was trained from" in capsys.readouterr().err
    # Going on makes the new files, without a training; the old one stays, for it is still the last round's.
    assert run("resume", old) == 0
    assert lf.same_bits(lf.load_ticket(old / WINNING)[0], lf.load_ticket(tuned / WINNING)[0])
    assert (old / "ticket.safetensors").exists()
    assert not verified(old).problems
    # A later round makes it go.
    lines = (old / "metrics.jsonl").read_text().splitlines(keepends=True)
    (old / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert run("resume", old) == 0
    assert not list(old.rglob("ticket.safetensors"))
    assert not verified(old).problems
    assert "initial.safetensors" in read_manifest(old / "seed0/round02")


def test_a_branch_keeps_what_its_early_rounds_were_trained_from(tuned: Path, tmp_path: Path) -> None:
    out = tmp_path / "branch"
    assert run("branch", tuned, "--from-round", "1", "--rounds", "2", "--rewind", "reinit", "--out", out) == 0
    assert lf.same_bits(initial_weights(out, 0, 1)[0], initial_weights(tuned, 0, 1)[0])
    assert not verified(out).problems
