"""A run's files hold survivors alone, with --packed its ticket files too: the same run, to every command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run

import lthfunc as lf
from lthfunc.runs.folder import read_run
from lthfunc.runs.verification import verified
from lthfunc.trees.files import tree_bytes

PRUNE = [
    "prune", "--rounds", "2", "--rate", "0.8", "--steps", "12", "--eval-every", "6", "--batch-size", "40", "--control",
    "reinit", "--rewind", "step:3", "--engine", "eager",
]  # fmt: skip


@pytest.fixture(scope="module", name="runs")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    assert run(*PRUNE, "--out", folder / "dense") == 0
    assert run(*PRUNE, "--packed", "--out", folder / "packed") == 0
    return folder


def test_it_has_the_same_tensors_in_fewer_bytes(runs: Path) -> None:
    ours, theirs = (sorted((runs / name).rglob("*.safetensors")) for name in ("packed", "dense"))
    assert [path.relative_to(runs / "packed") for path in ours] == [path.relative_to(runs / "dense") for path in theirs]
    assert len(ours) >= 12
    for mine, other in zip(ours, theirs, strict=True):
        (tree, about), (same, told) = map(lf.load_tree, (mine, other))
        assert lf.same_bits(tree, same)
        assert {**about, "config": None} == {**told, "config": None}
        assert about["config"] == {**told["config"], "packed": True}
        size, dense = mine.stat().st_size, len(tree_bytes(tree, about))
        pruned = about["kept"] < about["total"] and "anchor" not in mine.name
        assert size < (0.4 if pruned else 1.1) * dense
        # Dense at the top, packed below it; headers name the setting.
        assert other.stat().st_size == pytest.approx(dense if "which" in about else size, abs=100)
    records = [[{**item, "seconds": 0} for item in read_run(runs / name)[2]] for name in ("packed", "dense")]
    assert repr(records[0]) == repr(records[1])


def test_every_command_reads_it(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs / "packed", "packed")
    last = Path("packed/last_round.safetensors")
    before = last.read_bytes()
    last.unlink()
    assert run("resume", "packed") == 0
    assert last.read_bytes() == before
    assert not verified(Path("packed")).problems
    dense = str(runs / "dense")
    for command in (
        "info packed", "info packed/last_round.safetensors", "report packed --no-figures", f"compare packed {dense}",
        "export packed --to state-dict --round last --out ours.pt",
        f"export {dense} --to state-dict --round last --out theirs.pt",
        "branch packed --from-round 1 --rounds 2 --rate 0.5 --out branch", "verify branch",
    ):  # fmt: skip
        assert run(*command.split()) == 0, (command, capsys.readouterr())
    assert lf.same_bits(*(torch.load(f"{name}.pt", weights_only=True) for name in ("ours", "theirs")))
    assert lf.count(lf.load_ticket("branch/last_round.safetensors")[0].masks).density == pytest.approx(0.1, abs=0.001)


def test_tickets_are_saved_packed_where_that_is_asked_for(tmp_path: Path) -> None:
    ticket = lf.ticket(lf.prune(density=0.1)(lf.init(lf.models.lenet300((1, 8, 8), 10))))
    for packed in (False, True):
        lf.save_ticket(tmp_path / f"{packed}.safetensors", ticket, {"seed": 0}, packed=packed)
        lf.save_tree(tmp_path / f"tree-{packed}.safetensors", ticket._asdict(), packed=packed)
        found, about = lf.load_ticket(tmp_path / f"{packed}.safetensors")
        assert lf.same_bits(found, ticket)
        assert about == {"format": "lthfunc.ticket/1", "seed": 0}
    for name in ("", "tree-"):
        ours, theirs = ((tmp_path / f"{name}{packed}.safetensors").stat().st_size for packed in (True, False))
        assert ours < theirs / 5
