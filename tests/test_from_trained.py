"""A trained network of the user's own: pruned from its weights, measured, specialised and exported."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run
from torch.nn.functional import cross_entropy

import lthfunc as lf
from lthfunc.models import factory
from lthfunc.runs.folder import read_run
from lthfunc.trees.ops import scaled

NET = """
import torch
from parts import layer


class Net(torch.nn.Module):
    def __init__(self, classes, hidden=20):
        super().__init__()
        self.conv, self.norm = layer(1, 6), torch.nn.BatchNorm2d(6)
        self.fc1, self.fc2 = torch.nn.Linear(6 * 16, hidden), torch.nn.Linear(hidden, classes)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


made = Net(10)
"""
PARTS = "import torch\n\n\ndef layer(inputs, outputs):\n    return torch.nn.Conv2d(inputs, outputs, 3, padding=1)\n"
COMMAND = ["prune", "--arch", "net.py:Net", "--weights", "net.pth", "--from-trained", "--rounds", 2, "--rate", 0.5,
           "--steps", 8, "--eval-every", 4, "--engine", "eager"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """(the folder of a network that plain PyTorch has trained, its test accuracy there)."""
    folder = tmp_path_factory.mktemp("mine")
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    patch.syspath_prepend(str(folder))
    (folder / "net.py").write_text(NET)
    (folder / "parts.py").write_text(PARTS)
    import net as user_module  # type: ignore[import-not-found]

    data = lf.data.load("digits")
    x, test = scaled(data.train.x, data.scale), scaled(data.test.x, data.scale)
    torch.manual_seed(0)
    net = user_module.Net(10)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(3):
        for batch in torch.randperm(len(x)).split(60):
            optimizer.zero_grad()
            cross_entropy(net(x[batch]), data.train.y[batch]).backward()
            optimizer.step()
    torch.save(net.state_dict(), "net.pth")
    assert run(*COMMAND, "--replicates", 2, "--control", "reinit", "--out", "run") == 0
    patch.undo()
    return folder, float((net.eval()(test).argmax(1) == data.test.y).double().mean())


@pytest.fixture
def here(trained: tuple[Path, float], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, as the working directory."""
    monkeypatch.chdir(trained[0])
    return trained[0]


def test_round_zero_is_the_network_as_it_came(here: Path, trained: tuple[Path, float]) -> None:
    _, config, records = read_run(here / "run")
    state = torch.load("net.pth", weights_only=True)
    assert config.rewind == "lr"
    for item in records:
        if not item["round"]:
            assert (item["final_step"], item["early_stop_step"], len(item["curve"])) == (0, 0, 1)
            assert item["test_accuracy"] == pytest.approx(trained[1], abs=0.01)
            assert item["test_accuracy"] > 0.8
            tree, _ = lf.load_tree(here / "run" / f"seed{item['seed']}" / "round00" / "params.safetensors")
            leaves = {**tree["params"], **tree["buffers"]}
            assert lf.same_bits({name: leaves[name] for name in state}, dict(state))
        else:
            assert item["final_step"] == 8
    # Its masks are of the largest trained weights, on which training goes on; the control starts from random ones.
    masks = lf.load_tree("run/seed0/round01/masks.safetensors")[0]["masks"]
    kept, pruned = (
        torch.cat([state[name][mask == keep].abs() for name, mask in masks.items()]) for keep in (True, False)
    )
    assert kept.min() >= pruned.max()
    for number in (1, 2):
        params, its = (
            lf.load_tree(f"run/seed0/round0{number}/{file}.safetensors")[0][file]["fc1.weight"]
            for file in ("params", "masks")
        )
        assert float((params - state["fc1.weight"])[its].abs().max()) < 0.05
    control = lf.load_tree("run/seed0/round01-reinit/params.safetensors")[0]["params"]["fc1.weight"]
    assert float((control - state["fc1.weight"])[masks["fc1.weight"]].abs().max()) > 0.1


def test_it_resumes_verifies_and_is_reported_like_any_run(here: Path) -> None:
    shutil.copytree("run", "again")
    lines = Path("again/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("again/metrics.jsonl").write_text("".join(lines[:2]))  # killed after the first measurement
    assert run("resume", "again") == 0
    for name in ("seed0/round02", "seed1/round01", "seed1/round01-reinit"):
        for file in ("params", "masks"):
            path = Path(name) / f"{file}.safetensors"
            assert (Path("again") / path).read_bytes() == (Path("run") / path).read_bytes()
    assert run("verify", "again") == 0
    assert run("report", "again", "--no-figures") == 0


def test_it_is_specialised_and_exported_from_any_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(factory, "with_weights", None)  # the rounds have their own
    monkeypatch.chdir("/")
    assert run("specialize", here / "run", "--format", "csr", "--round", 2) == 0
    assert run("export", here / "run", "--round", 2, "--to", "state-dict", "--out", here / "small.pt") == 0
    assert "Net on digits: round 2 of 2" in capsys.readouterr().out
    small = torch.load(here / "small.pt", weights_only=True)
    assert lf.same_bits(
        small["fc1.weight"], lf.load_tree(here / "run/seed0/round02/params.safetensors")[0]["params"]["fc1.weight"]
    )
    assert run("resume", here / "run") == 2
    assert f"go there first: cd {here}" in capsys.readouterr().err


def test_fine_tuning_goes_on_at_the_end_of_the_schedule(here: Path) -> None:
    assert run(*COMMAND, "--rewind", "last-lr", "--schedule", "step", "--out", "tuned") == 0
    steps = [(item["curve"][0][0], item["final_step"]) for item in read_run(here / "tuned")[2]]
    assert steps == [(0, 0), (8, 16), (16, 24)]
    assert run(*COMMAND, "--rewind", "lr:2", "--arch", "net.py:made", "--out", "later") == 0
    assert [item["curve"][0][0] for item in read_run(here / "later")[2]] == [0, 2, 2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rewind", "init"], "--rewind: invalid value 'init' (expected lr, none, last-lr, reinit or"),
        (["--rewind", "step:3"], "--rewind: invalid value 'step:3'"),
        (["--weights", "gone.pth"], "--weights: invalid value 'gone.pth' (expected a file that is there)"),
        (["--arch-option", "hidden=30"], "Net (of another shape: fc1.weight (20, 96) instead of (30, 96), fc"),
        (["--arch", "net.py:net"], "cannot import 'net.py:net' (net.py has no 'net'; did you mean 'Net'?)"),
        (["--arch", "net.py"], "--arch: invalid value 'net.py' (expected net.py:NAME, with the name of a class or"),
        (["--arch-option", "width=30"], "--arch-option: unknown name 'width'"),
        (["--arch", "lenet300"], "lenet300 (missing: fc3.weight, fc3.bias; unexpected: conv.weight, con"),
        (["--arch", "net.py:made", "--arch-option", "hidden=20"], "--arch-option: invalid value 'hidden'"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("here")
def test_what_does_not_fit_is_one_line(options: list[str], words: str, capsys: Any) -> None:
    assert run(*COMMAND, *options, "--out", "other") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("other").exists()
