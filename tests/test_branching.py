"""Experiments that begin in a finished run, comparisons that go on, and a user's own functions on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import with_splits
from lthfunc_cli.main import main

import lthfunc as lf
from lthfunc.runs.folder import read_run
from lthfunc.runs.ticket_files import initial_weights
from lthfunc.trees.files import load_tree

OWN = '''
import torch


def newest(params, masks):
    """Weights of later outputs are worth more."""
    return {name: torch.arange(len(mask)).float()[:, None].expand(mask.shape) for name, mask in masks.items()}


def broken(params, masks):
    return {name: params[name] / 0 - params[name] / 0 for name in masks}


def halved(scores, masks, fraction):
    return {name: mask.sum() // 2 for name, mask in masks.items()}


def flipped(pruned, anchor):
    params = {name: -leaf * pruned.masks.get(name, 1) for name, leaf in anchor.params.items()}
    return pruned._replace(params=params, step=anchor.step, opt=())
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three rounds with two seeds and a control."""
    folder = tmp_path_factory.mktemp("branching") / "run"
    command = "prune --rounds 3 --steps 20 --replicates 2 --jobs 1 --control reinit --engine eager --out"
    assert main([*command.split(), str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and functions of a user's own beside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def test_a_branch_shares_its_rounds_and_goes_on_alone(run: Path, capsys: Any) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(f"branch {run} --from-round 1 --rewind lr --rounds 2 --out branch".split()) == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    about, config, records = read_run(Path("branch"))
    assert (about["command"], config.rewind, config.rounds) == ("prune", "lr", 2)
    _, _, theirs = read_run(run)
    assert records[:3] == theirs[:3]  # rounds 0 and 1 of the first seed, and its control
    # Round 2 prunes what round 1 trained, as in the run, and keeps the trained values.
    for seed in (0, 1):
        trained, _ = load_tree(run / f"seed{seed}/round01/params.safetensors")
        ticket, about = initial_weights(Path("branch"), seed, 2)
        same, _ = load_tree(run / f"seed{seed}/round02/masks.safetensors")
        assert lf.same_bits(ticket.masks, same["masks"])
        assert lf.same_bits(ticket.params, lf.apply_masks(trained["params"], same["masks"]))
        assert about["step"] == 0
    assert main(["resume", "branch"]) == 0
    assert main(["info", "branch"]) == 0


def test_the_same_branch_is_the_run_itself(run: Path) -> None:
    assert main(f"branch {run} --from-round 1 --out same".split()) == 0
    for file in ("seed0/round03/params.safetensors", "seed1/round03-reinit/params.safetensors"):
        ours, theirs = (load_tree(folder / file)[0] for folder in (Path("same"), run))
        assert lf.same_bits(ours, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--from-round 7", "--from-round: invalid value 7 (expected a finished round"),
        ("--from-round 3", "--rounds: invalid value 3 (expected at least 4"),
        ("--from-round 4 --rounds 6", "--from-round: invalid value 4 (expected a finished round"),
        ("--from-round 1 --rewind step:9", "(expected the step of the run's anchor, 0"),
        ("--from-round 1 --score none", "--score: unknown name 'none'"),
    ],
)
def test_branches_that_cannot_be(run: Path, options: str, words: str, capsys: Any) -> None:
    capsys.readouterr()
    assert main(f"branch {run} {options} --out new".split()) == 2
    assert words in capsys.readouterr().err
    assert not Path("new").exists()


def test_tickets_move_to_other_data(run: Path, capsys: Any) -> None:
    other = lf.data.load("digits")
    flipped = other._replace(name="flipped", train=other.train._replace(x=other.train.x.flip(-1)))
    lf.data.save_mapped("flipped.safetensors", flipped)
    command = f"transfer {run} --dataset flipped.safetensors --steps 10 --control shuffled-mask --out moved"
    assert main(command.split()) == 0
    about, config, records = read_run(Path("moved"))
    assert (about["command"], config.dataset) == ("transfer", "flipped.safetensors")
    assert len(records) == 2 * (4 + 3)
    masks, _ = load_tree(Path("moved/seed1/round02/masks.safetensors"))
    assert lf.same_bits(masks, load_tree(run / "seed1/round02/masks.safetensors")[0])
    ours, theirs = (initial_weights(folder, 0, 3)[0] for folder in (Path("moved"), run))
    assert lf.same_bits(ours.params, theirs.params)
    # An interrupted one goes on.
    lines = Path("moved/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("moved/metrics.jsonl").write_text("".join(lines[:6]))
    assert main(["resume", "moved"]) == 0
    timeless = [{**item, "seconds": 0} for item in read_run(Path("moved"))[2]]
    assert timeless == [{**item, "seconds": 0} for item in records]


def test_tickets_move_to_data_of_other_classes(run: Path, capsys: Any) -> None:
    """The output layer is drawn anew, dense; everything else is the ticket's."""
    digits = lf.data.load("digits")
    halves = with_splits(digits, lambda split: split._replace(y=split.y // 2))
    lf.data.save_mapped("halves.safetensors", lf.Dataset("halves", halves.train, halves.val, halves.test, classes=5))
    assert main(f"transfer {run} --dataset halves.safetensors --steps 10 --out halved".split()) == 0
    masks, _ = load_tree(Path("halved/seed1/round02/masks.safetensors"))
    theirs, _ = load_tree(run / "seed1/round02/masks.safetensors")
    assert masks["masks"]["fc3.weight"].shape == (5, 100)
    assert bool(masks["masks"]["fc3.weight"].all())
    assert torch.equal(masks["masks"]["fc2.weight"], theirs["masks"]["fc2.weight"])
    params, _ = load_tree(Path("halved/seed1/round02/params.safetensors"))
    assert not params["params"]["fc2.weight"][~masks["masks"]["fc2.weight"]].any()
    capsys.readouterr()
    assert main(["info", "halved", "--classes"]) == 0
    out = capsys.readouterr().out
    assert "mean over classes" in out
    assert main(["info", "halved/last_round.safetensors", "--classes"]) == 2


def test_tickets_that_do_not_fit_are_refused(run: Path, capsys: Any) -> None:
    x, y = torch.randn(60, 9), torch.randint(0, 10, (60,))
    lf.data.save_mapped("other.safetensors", lf.data.from_tensors("other", (x, y), (x, y), val=10, classes=10))
    capsys.readouterr()
    assert main(f"transfer {run} --dataset other.safetensors --steps 5 --batch-size 10 --out moved".split()) == 2
    assert "--dataset: the ticket's fc1.weight is (300, 64), and a network for this data set" in capsys.readouterr().err
    assert not Path("moved").exists()


def test_a_users_own_functions_prune(run: Path, capsys: Any) -> None:
    command = "prune --rounds 1 --steps 4 --engine eager --score own:newest --allocate own:halved --rewind own:flipped"
    assert main([*command.split(), "--out", "mine"]) == 0
    masks = load_tree(Path("mine/seed0/round01/masks.safetensors"))[0]["masks"]
    assert lf.layer_counts(masks)["fc1.weight"] == (9_600, 19_200)
    assert masks["fc1.weight"][150:].all()
    assert not masks["fc1.weight"][:150].any()
    ticket = initial_weights(Path("mine"), 0, 1)[0].params
    anchor = load_tree(Path("mine/seed0/anchor.safetensors"))[0]["params"]
    assert torch.equal(ticket["fc1.weight"][150:], -anchor["fc1.weight"][150:])
    capsys.readouterr()
    assert (
        main(
            [*["prune", "--rounds", "1", "--steps", "4", "--engine", "eager", "--score", "own:broken", "--out", "bad"]]
        )
        == 2
    )
    assert "score: 'broken': 19,200 of 19,200 scores of fc1.weight are NaN" in capsys.readouterr().err


@pytest.mark.parametrize("score", ["movement", "taylor", "fisher", "snip", "grasp", "synflow", "wanda", "large-init"])
def test_scores_by_name_prune_to_the_density(score: str, tmp_path: Path) -> None:
    command = f"prune --rounds 2 --steps 4 --density 0.1 --engine eager --score {score} --out {tmp_path / 'run'}"
    assert main(command.split()) == 0
    _, _, records = read_run(tmp_path / "run")
    assert records[-1]["density"] == pytest.approx(0.1, abs=1e-4)


def test_densities_by_list_and_by_function(run: Path) -> None:
    Path("levels.py").write_text("def quick(rounds):\n    return [0.3 / (k + 1) for k in range(rounds)]\n")
    base = "prune --steps 4 --engine eager"
    assert main([*f"{base} --densities 0.5,0.1 --out listed".split()]) == 0
    assert main([*f"{base} --rounds 3 --densities levels:quick --out own-densities".split()]) == 0
    for folder, wanted in (("listed", [1, 0.5, 0.1]), ("own-densities", [1, 0.3, 0.15, 0.1])):
        assert [item["density"] for item in read_run(Path(folder))[2]] == pytest.approx(wanted, abs=1e-5)


def test_structures_on_the_command_line(tmp_path: Path) -> None:
    command = "prune --rounds 1 --steps 4 --rate 0.5 --engine eager --allocate uniform --structure 2:4"
    assert main([*command.split(), "--out", str(tmp_path / "run")]) == 0
    ticket, _ = lf.load_ticket(tmp_path / "run/last_round.safetensors")
    assert all(lf.has_n_of_m(mask, 2, 4) for mask in ticket.masks.values())
    assert lf.density(ticket.masks) == 0.5


def test_layer_collapse_is_told_and_a_floor_prevents_it(tmp_path: Path, capsys: Any) -> None:
    """SynFlow in one shot empties layers (Tanaka et al. 2020, fig. 1)."""
    base = ["prune", "--rounds", "1", "--steps", "4", "--engine", "eager", "--score", "synflow", "--density", "0.001"]
    assert main([*base, "--out", str(tmp_path / "plain")]) == 0
    assert "Layer collapse: from round 1 on no weights remain in fc1.weight" in capsys.readouterr().out
    assert lf.collapsed_layers(lf.load_ticket(tmp_path / "plain/last_round.safetensors")[0].masks)
    assert main([*base, "--min-layer-weights", "5", "--out", str(tmp_path / "floor")]) == 0
    assert "Layer collapse" not in capsys.readouterr().out
    assert not lf.collapsed_layers(lf.load_ticket(tmp_path / "floor/last_round.safetensors")[0].masks)


def test_units_take_with_them_what_reads_them(tmp_path: Path) -> None:
    command = (
        f"prune --rounds 1 --steps 4 --rate 0.5 --engine eager --allocate uniform --structure units --out {tmp_path}/r"
    )
    assert main(command.split()) == 0
    masks = lf.load_ticket(tmp_path / "r/last_round.safetensors")[0].masks
    for layer, reader in (("fc1.weight", "fc2.weight"), ("fc2.weight", "fc3.weight")):
        dead = ~masks[layer].any(1)
        assert int(dead.sum()) == len(dead) // 2
        assert not masks[reader][:, dead].any()
    assert masks["fc3.weight"].any(1).all()  # the classes stay


@pytest.mark.usefixtures("drawn")
def test_connectivity_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    plot = tmp_path / "barriers.png"
    assert main(f"connectivity --at 0 --at 10 --steps 30 --engine eager --json --plot {plot}".split()) == 0
    found = json.loads(capsys.readouterr().out)["results"]
    assert [item["k"] for item in found] == [0, 10]
    assert all(len(item["error"]) == 11 for item in found)
    assert plot.stat().st_size > 10_000
