"""Every score on networks with batch norm and dropout; masks to plain modules and back; what is noted and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lthfunc_cli.main import main
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import lthfunc as lf
from lthfunc.trees.ops import same_bits

OWN = """
import torch
from torch import nn


class Normed(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.fc = nn.Dropout(0.3), nn.Linear(144, classes)

    def forward(self, x):
        return self.fc(self.drop(torch.relu_(self.norm(self.conv(x))).flatten(1)))


class Flat(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.fc, self.norm = nn.Linear(64, classes), nn.BatchNorm1d(classes)

    def forward(self, x):
        return self.norm(self.fc(x.flatten(1)))


def only_trained(params, masks):
    if params["fc.weight"].std() < 1:
        raise ValueError("not yet")
    return {name: params[name].abs() for name in masks}
"""


@pytest.mark.parametrize("score", ["movement", "taylor", "fisher", "snip", "grasp", "synflow", "wanda"])
def test_every_score_of_data_works_with_batch_norm_and_dropout_and_the_seed_decides(
    score: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    kept = []
    for run in ("one", "other") if score == "snip" else ("one",):
        torch.manual_seed(len(run))
        command = f"prune --arch own.py:Normed --steps 3 --rounds 1 --batch-size 8 --score {score} --out {run}"
        assert main(command.split()) == 0, capsys.readouterr().err
        kept.append(lf.load_tree(tmp_path / run / "seed0" / "round01" / "masks.safetensors")[0])
    assert same_bits(kept[0], kept[-1])


def test_what_cannot_be_scored_is_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    base = "prune --steps 3 --rounds 1 --out run --batch-size"
    for command, words in (
        (f"{base} 1 --arch own.py:Flat", "): Expected more than 1 value per channel"),
        (f"{base} 8 --arch own.py:Normed --score own.py:only_trained", "--score: 'own.py:only_trained' fails (line"),
    ):
        assert main(command.split()) == 2
        error = capsys.readouterr().err
        assert words in error
        assert "Traceback" not in error
    assert not Path("run").exists()


def test_fisher_takes_running_statistics_of_batch_norms() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    model = lf.from_module(net)
    state = lf.init(model, 1)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=draw), torch.randint(0, 3, (12,), generator=draw)
    buffers = {**state.buffers, "1.running_mean": torch.randn(6, generator=draw)}
    scores = lf.fisher(lf.loss_of(model, buffers), [(x, y)])(state.params, state.masks)
    net.load_state_dict({**state.params, **buffers})
    net.eval()
    squares = {name: torch.zeros_like(leaf) for name, leaf in net.named_parameters()}
    for i in range(12):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        for name, leaf in net.named_parameters():
            assert leaf.grad is not None
            squares[name] += leaf.grad.square() / 12
    for name, score in scores.items():
        torch.testing.assert_close(score, squares[name] * state.params[name].square() / 2)


def test_fisher_where_examples_cannot_be_under_vmap() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc(x) * (2 if float(x.sum()) > 0 else 1)
            return out

    model = lf.from_module(Deciding())
    state, x, y = lf.init(model), torch.randn(8, 5), torch.randint(0, 3, (8,))
    scores = lf.fisher(lf.loss_of(model, state.buffers), [(x, y)])(state.params, state.masks)
    twice = torch.where(x.sum(1) > 0, 2.0, 1.0)[:, None]
    logits = (x @ state.params["fc.weight"].T + state.params["fc.bias"]) * twice
    slope = (logits.softmax(1) - F.one_hot(y, 3)) * twice
    wanted = torch.einsum("no,ni->noi", slope, x).square().mean(0) * state.params["fc.weight"].square() / 2
    torch.testing.assert_close(scores["fc.weight"], wanted)


def test_modules_of_tickets_train_and_masks_come_back() -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    model = lf.from_module(net)
    ticket = lf.ticket(lf.prune(density=0.4)(lf.init(model, 1)))
    module = lf.to_module(ticket, model)
    assert all(leaf.requires_grad for leaf in module.parameters())
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x, y = torch.randn(20, 5), torch.randint(0, 3, (20,))
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for name, mask in ticket.masks.items():
                module.get_parameter(name).mul_(mask)
    trained = {name: leaf.detach() + 0.0 for name, leaf in module.named_parameters()}
    assert not torch.equal(trained["0.weight"], ticket.params["0.weight"])
    again, back = lf.from_pruned(module, zeros=True, init=lf.as_built)
    state = lf.init(lf.from_module(module, init=lf.as_built), zeros_pruned=True)
    for masks, params in ((back.masks, back.params), (state.masks, state.params), (state.masks, lf.init(again).params)):
        assert same_bits(masks, ticket.masks)
        assert same_bits({name: leaf + 0.0 for name, leaf in params.items()}, trained)
    assert lf.count(lf.init(again).masks).density == 1  # on request alone
    torch_prune.custom_from_mask(module.get_submodule("0"), "weight", ticket.masks["0.weight"])
    assert same_bits(lf.from_pruned(module, zeros=True)[1].masks, ticket.masks)
    assert lf.count(lf.from_pruned(module)[1].masks).kept > lf.count(ticket.masks).kept


def test_kept_rows_of_gpt2s_layers_are_refused_by_structures_along_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers.pytorch_utils")
    monkeypatch.chdir(tmp_path)
    Path("gpt.py").write_text(
        "from torch import nn\nfrom transformers.pytorch_utils import Conv1D\n"
        "def net(classes): return nn.Sequential(nn.Flatten(), Conv1D(8, 64), nn.ReLU(), nn.Linear(8, classes))\n"
    )
    base = "prune --arch gpt.py:net --steps 2 --rounds 1 --structure per-output --out run"
    assert main(base.split()) == 2
    assert "--exempt '1.weight' leaves it out" in capsys.readouterr().err
    assert main([*base.split(), "--exempt", "1.weight"]) == 0, capsys.readouterr().err


def test_matrices_left_alone_and_other_generators_are_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gate.py").write_text(
        "import random, torch\nfrom torch import nn\nclass Gated(nn.Module):\n    def __init__(self, classes):\n"
        "        super().__init__()\n        self.fc = nn.Linear(64, classes)\n"
        "        self.gate = nn.Parameter(torch.randn(64, 64))\n"
        "    def forward(self, x): return self.fc(x.flatten(1) @ self.gate * (1 + random.random()))\n"
    )
    command = "prune --arch gate.py:Gated --steps 2 --rounds 0 --engine eager --out"
    assert main([*command.split(), "run"]) == 0
    printed = capsys.readouterr().err
    assert "Gated: neither pruned nor reinitialised, so the same for every seed: gate" in printed
    assert main([*command.split(), "other"]) == 0
    one, other = (lf.load_tree(tmp_path / run / "seed0/round00/params.safetensors")[0] for run in ("run", "other"))
    assert same_bits(one, other)
