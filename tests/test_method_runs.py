"""`lthfunc prune --method`: a run like any other, whatever the method."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import run
from test_runs import same_files

import lthfunc as lf
from lthfunc.reports.mask_updates import mask_update_charts
from lthfunc.runs.folder import read_run, training_folder
from lthfunc.runs.json_lines import line_of, value_of
from lthfunc.runs.manifests import load_checked
from lthfunc.runs.ticket_files import initial_weights, trained_weights
from lthfunc.runs.verification import verified
from lthfunc.scheduling.progress import Tracker
from lthfunc.training.mask_updates import masks_digest

SMALL = ["--steps", "24", "--eval-every", "6", "--batch-size", "40", "--engine", "eager", "--density", "0.2"]
RIGL = ["prune", "--method", "rigl", *SMALL, "--control", "reinit"]


@pytest.fixture(scope="module", name="finished")
def a_finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rigl"
    assert run(*RIGL, "--out", folder) == 0
    return folder


@pytest.fixture(name="rigl")
def a_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "rigl")
    return Path("rigl")


def test_it_has_one_round_whose_updates_are_recorded(rigl: Path, capsys: Any) -> None:
    about, config, records = read_run(rigl)
    assert (about["format"], config.method, config.dense, config.rounds) == (5, "rigl", False, 1)
    assert [(item["round"], item["variant"]) for item in records] == [(1, "ticket"), (1, "reinit")]
    place = training_folder(rigl, 0, 1, "ticket")
    masks = load_checked(place, "masks.safetensors")[0]["masks"]
    for item in records:
        assert [each["step"] for each in item["updates"]] == list(range(1, 18))
        assert item["kept"] == sum(layer["kept"] for layer in item["layers"].values()) == 10_040
        assert all(dropped == grown for each in item["updates"] for _, dropped, grown in each["layers"].values())
    assert records[0]["updates"][-1]["masks_sha256"] == masks_digest(masks)
    assert records[0]["updates"][0]["masks_sha256"] != masks_digest(masks)
    trained, begun = trained_weights(place)[0], initial_weights(rigl, 0, 1)[0]
    assert lf.same_bits(begun.masks, trained.masks)
    anchor = load_checked(place, "../anchor.safetensors")[0]["params"]
    for name, mask in masks.items():
        drawn = (begun.params[name] == anchor[name]) & (anchor[name] != 0)
        assert (begun.params[name][mask & ~drawn] == 0).all()  # grown weights have begun at zero
        assert int(drawn.sum()) <= int(mask.sum())
    assert sorted(path.name for path in rigl.glob("*.png")) == ["mask_updates.png", "training_curves.png"]
    assert run("resume", rigl) == run("info", rigl) == run("report", rigl, "--no-figures") == 0
    page = (rigl / "report.html").read_text()
    assert re.search(r"Masks while training.*mask_densities.*mask_updates", page, re.DOTALL)
    assert not verified(rigl).problems
    assert "rigl" in capsys.readouterr().out


def test_it_is_interrupted_and_resumed_to_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Tracker.step

    def interrupting(self: Tracker, task: Any, number: int, point: Any) -> None:
        step(self, task, number, point)
        if number == 9:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Tracker, "step", interrupting)
        assert run(*RIGL, "--out", tmp_path / "run") == 130
        assert list((tmp_path / "run").glob("seed0/round01/checkpoint-000000009-*"))
        assert run("resume", tmp_path / "run") == 130  # the control
    assert run("resume", tmp_path / "run") == 0
    same_files(tmp_path / "run", finished)


@pytest.mark.parametrize("change", ["last", "count", "step"])
def test_updates_that_do_not_lead_to_the_masks_are_found(rigl: Path, change: str) -> None:
    lines = (rigl / "metrics.jsonl").read_text().splitlines()
    item = value_of(lines[1])
    last = item["updates"][-1]
    if change == "last":
        last["masks_sha256"] = item["updates"][0]["masks_sha256"]
    elif change == "count":
        last["layers"]["fc1.weight"][1] += 1
    else:
        last["step"] = item["updates"][-2]["step"]
    (rigl / "metrics.jsonl").write_text("\n".join([lines[0], line_of(item), *lines[2:], ""]))
    words = {"last": "not those of its last update", "count": "does not follow", "step": "not in the order"}[change]
    assert any(words in str(problem) for problem in verified(rigl).problems)
    if change == "last":
        assert run("resume", rigl) == 0  # it is trained again
        assert not verified(rigl).problems


def test_densities_are_independent_rounds_and_a_dense_network_may_be_trained(tmp_path: Path, capsys: Any) -> None:
    several = [word for word in SMALL if word not in ("--density", "0.2")]
    assert run("prune", "--method", "gradual", *several, "--densities", "0.5,0.1", "--out", tmp_path / "two") == 0
    records = read_run(tmp_path / "two")[2]
    assert [(item["round"], item["density"]) for item in records] == [(1, 0.5), (2, 0.1)]
    assert [item["updates"][0]["step"] for item in records] == [1, 1]
    assert not verified(tmp_path / "two").problems
    assert run("prune", "--method", "ste", *SMALL, "--dense", "--out", tmp_path / "ste") == 0
    assert [item["round"] for item in read_run(tmp_path / "ste")[2]] == [0, 1]
    assert "the dense network" in capsys.readouterr().out  # against which the round won or lost
    assert run("compare", tmp_path / "two", tmp_path / "ste", "--at", "0.1") == 0
    assert run("export", tmp_path / "ste", "--to", "state-dict") == 0
    charts = mask_update_charts(records)
    assert [chart.key for chart in charts] == ["mask_densities", "mask_updates"]
    whole = charts[0].series[-1]
    assert (whole.x[0], whole.x[-1]) == (0, 24)
    assert [whole.y[0], whole.y[-1]] == pytest.approx([100, 10], abs=0.01)
    assert len(charts[1].series) == 3


def test_it_is_branched_and_its_tickets_move(rigl: Path) -> None:
    assert run("branch", rigl, "--from-round", "1", "--rounds", "2", "--rate", "0.5", "--out", "branch") == 0
    records = read_run(Path("branch"))[2]
    assert [(item["round"], item["density"]) for item in records if item["variant"] == "ticket"] == [
        (1, 0.2),
        (2, 0.25),
    ]
    assert run("transfer", rigl, "--dataset", "digits", "--steps", "6", "--out", "moved") == 0
    _, config, (item,) = read_run(Path("moved"))
    assert (config.method, item["round"], item.get("updates")) == ("magnitude-init", 1, None)
    ours, theirs = (
        load_checked(training_folder(each, 0, 1, "ticket"), "masks.safetensors")[0] for each in (Path("moved"), rigl)
    )
    assert lf.same_bits(ours, theirs)
    assert not verified(Path("moved")).problems


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--method rigll", "unknown name 'rigll'; did you mean 'rigl'"),
        ("--method rigl --score snip", "--score: invalid value 'snip' (expected random with --method rigl)"),
        (
            "--method snip --update-every 5",
            "--update-every: requires --method early-bird, gradual, set, rigl, acdc, granet, mest, srigl or cht",
        ),
        ("--no-dense", "--no-dense: --method imp prunes trained networks"),
        ("--method gradual --rounds 0", "--rounds: invalid value 0 (expected at least 1 with --method gradual)"),
        ("--method set --compact", "--compact: invalid value True (expected False with --method set)"),
        ("--method rigl --steps 8 --update-every 6", "--update-every: invalid value 6 (expected at most 5"),
        ("--method acdc --steps 30 --update-every 9", "--update-every: invalid value 9 (expected at most 8"),
        ("--method wanda --blocks fc9", "--blocks: invalid value 'fc9'"),
        ("--method rigl --steps 1", "--steps: the training is too short for an update of masks"),
        ("--method METHOD:nothing", "--method: 'METHOD:nothing' returned a NoneType, not a Plan"),
        ("--method METHOD:dense", "changed `dense` of the plan"),
    ],
)
def test_what_cannot_be_is_one_line(options: str, words: str, tmp_path: Path, capsys: Any) -> None:
    own = tmp_path / "own_method.py"
    own.write_text("def nothing(plan): pass\n\n\ndef dense(plan): return plan._replace(dense=False)\n")
    out = tmp_path / "run"
    assert run("prune", *options.replace("METHOD", str(own)).split(), "--engine", "eager", "--out", out) == 2
    assert words.replace("METHOD", str(own)) in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
