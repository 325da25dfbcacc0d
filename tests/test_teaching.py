"""Distillation from the command line: teachers out of runs and files, recorded, resumed and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import run
from lthfunc_cli.main import main

import lthfunc as lf
from lthfunc.trees.ops import same_bits

SHORT = ["--steps", 12, "--batch-size", 20]
TEACHER = "big/seed0/round00/params.safetensors"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of digits, `big`, and a smaller one that has learnt from it, `small`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run("train", "--arch", "lenet300", *SHORT, "--out", "big") == 0
        teacher = ["--teacher", "big", "--distill-weight", 0.6, "--temperature", 2]
        assert run("prune", "--arch", "lenet5-wide", "--rounds", 1, *teacher, *SHORT, "--out", "small") == 0
    return folder


@pytest.fixture
def here(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_learns_as_the_functions_do(here: Path, digits: lf.Dataset) -> None:
    big, small = lf.models.lenet300((1, 8, 8)), lf.models.lenet5_wide((1, 8, 8))
    tree, _ = lf.load_tree(TEACHER)
    teacher = lf.to_module(lf.Ticket(tree["params"], {}, {}), big)
    loss = lf.distillation(teacher, weight=0.6, temperature=2.0)
    train = lf.train(small, digits, optimizer=lf.adam(1.2e-3), steps=12, batch_size=20, loss=loss)
    found, _ = lf.load_tree("small/seed0/round00/params.safetensors")
    assert same_bits(found["params"], train(lf.init(small)).params)


def test_a_run_records_its_teacher_and_resumes_with_no_other(here: Path, capsys: Any) -> None:
    lines = Path("small/metrics.jsonl").read_text().splitlines(keepends=True)
    config = json.loads(lines[0])["config"]
    assert (config["teacher"], config["teacher_arch"], len(config["teacher_digest"])) == (TEACHER, "lenet300", 64)
    last = "small/seed0/round01/params.safetensors"
    before = Path(last).read_bytes()
    Path("small/metrics.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree("small/seed0/round01")
    shutil.copytree("small", "again")
    assert run("resume", "small") == 0
    assert Path(last).read_bytes() == before
    tree, about = lf.load_tree(TEACHER)
    tree["params"]["fc3.bias"] += 1
    lf.save_tree(TEACHER, tree, about)
    capsys.readouterr()
    assert run("resume", "again") == 2
    assert "--teacher: 'big/seed0/round00/params.safetensors' has changed since the run" in capsys.readouterr().err
    assert run("info", "again") == 0  # what only reads the run asks for no teacher
    shutil.rmtree("big")
    assert run("export", "small", "--to", "state-dict") == 0


OWN = """
import torch
import lthfunc as lf
class Net(torch.nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc = torch.nn.Linear(64, classes)
    def forward(self, x):
        return self.fc(x.flatten(1))
def loss(outputs, targets, context):
    return lf.cross_entropy(outputs, targets) + (outputs - context.teacher.outputs).square().mean()
"""


def test_a_loss_of_ones_own_gets_the_teacher(here: Path, capsys: Any) -> None:
    """From the winning ticket of a run, whose network it finds; with numbers, which have no divergence, as well."""
    Path("own.py").write_text(OWN)
    ticket = ["--teacher", "big/seed0/round00/params.safetensors", "--loss", "own.py:loss"]
    assert run("prune", "--rounds", 0, *ticket, *SHORT, "--out", "mine") == 0
    assert run("train", *ticket, "--temperature", 3, *SHORT, "--out", "no") == 2
    assert "--temperature: means nothing to --loss own.py:loss, which takes a context" in capsys.readouterr().err


def words_of(error: str) -> str:
    return " ".join(error.split())


def test_what_cannot_teach_is_refused_before_anything_is_written(here: Path, capsys: Any) -> None:
    Path("own.py").write_text(OWN)
    net = torch.nn.Linear(64, 7)
    torch.save({"fc.weight": net.weight, "fc.bias": net.bias}, "seven.pth")
    Path("none").mkdir()
    shutil.copytree("big", "empty")
    shutil.rmtree("empty/seed0")
    shutil.copytree("big", "sparse")
    shutil.rmtree("sparse/seed0/round00")
    shutil.copytree("big", "foreign")
    config = Path("foreign/config.toml")
    config.write_text(config.read_text().replace('arch = "lenet300"', 'arch = "stranger.py:Net"'))
    x = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    np.savez("numbers.npz", x=x, y=x.sum((1, 2, 3)))
    for options, words in [
        ("--temperature 3", "--temperature: requires --teacher"),
        ("--teacher none", "--teacher: invalid value 'none' (expected a run's folder, or a file of weights)"),
        ("--teacher nowhere", "--teacher: invalid value 'nowhere' (expected a run's folder, a file (.safetensors"),
        ("--teacher empty", "--teacher: empty: has no finished training yet"),
        ("--teacher big/seed0", "--teacher: invalid value 'big/seed0' (expected a run's folder"),
        ("--teacher sparse", "--teacher: sparse: has no trained dense network; name a file of weights"),
        ("--teacher big --teacher-arch lenet5", "--teacher-arch: 'lenet5' needs images of at least 12×12"),
        ("--teacher seven.pth --teacher-arch own.py:Net", "--teacher: does not fit the network own.py:Net"),
        ("--teacher foreign", "foreign: the settings import code: arch = 'stranger.py:Net'; check it, then allow it"),
        ("--teacher big --teacher-arch lenet300 --dataset npz:numbers.npz", "--teacher: does not fit"),
        ("--teacher big --distill-weight 2", "--distill-weight: invalid value 2"),
    ]:
        assert main(["prune", "--rounds", "1", "--steps", "4", *options.split(), "--out", "refused"]) == 2, options
        assert words in words_of(capsys.readouterr().err)
        assert not Path("refused").exists()


def test_pickled_weights_of_a_teacher_need_trust_in_a_file(here: Path, capsys: Any) -> None:
    tree, _ = lf.load_tree(TEACHER)
    torch.save(tree["params"], "mine.pth")
    Path("recipe.toml").write_text('teacher = "mine.pth"\nsteps = 4\nrounds = 0\n')
    assert run("prune", "--config", "recipe.toml", "--out", "refused") == 2
    assert "the settings read pickled weights: teacher = 'mine.pth'" in capsys.readouterr().err
    assert run("prune", "--config", "recipe.toml", "--trust", "--out", "trusted") == 0
