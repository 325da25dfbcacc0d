"""What of a module is pruned, and modules that come with weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from lthfunc_cli.main import main
from safetensors.torch import save_file
from test_any_module import Normed
from torch import nn
from torch.nn.utils import prune as torch_prune

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.models import build, build_for


@pytest.mark.parametrize(
    ("only", "keep", "names"),
    [
        (["*conv*"], [], ["conv.parametrizations.weight.original0", "conv.parametrizations.weight.original1",
                          "conv.bias"]),
        (["*.weight"], ["batch*", "group*", "norm*"], ["depth.weight", "fc.weight"]),
        ([], ["fc*"], ["conv.parametrizations.weight.original1", "depth.weight"]),
    ],
)  # fmt: skip
def test_patterns_choose_what_is_pruned(only: list[str], keep: list[str], names: list[str]) -> None:
    model = lf.from_module(Normed(), prune_only=only, never_prune=keep)
    assert sorted(model.prunable) == sorted(names)
    assert sorted(lf.init(model).masks) == sorted(names)


def test_patterns_that_fit_nothing_name_the_parameters() -> None:
    with pytest.raises(
        UserError, match=r"^never_prune: no parameter matches 'head\*' \(parameters: conv\.param.*fc\.w"
    ):
        lf.from_module(Normed(), never_prune=["head*"])
    with pytest.raises(UserError, match=r"^prune_only: no parameter matches 'x' \(parameters: .*norm\.bias"):
        lf.from_module(Normed(), prune_only=["x"])
    with pytest.raises(UserError, match="nothing is left to prune"):
        lf.from_module(nn.Linear(2, 2), never_prune=["*"])


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "0.weight has no shape yet: call the lazy module once"),
        (lambda: nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(2, 2))), "use .*parametrizations.spectral_norm"),
        (lambda: torch_prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), r"lthfunc.from_pruned\(module\)"),
        (lambda: nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3)), "has no linear, convolution"),
        (
            lambda: torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)),
            "is a ScriptModule .*; pass the original module",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(module: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        lf.from_module(module())


def test_pruned_modules_of_torch_are_taken_over() -> None:
    module = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch_prune.random_unstructured(module[0], "weight", 0.7)
    torch_prune.l1_unstructured(module[0], "bias", 2)
    x = torch.randn(5, 6)
    wanted = module(x)
    model, ticket = lf.from_pruned(module)
    assert set(model.prunable) == {"0.weight", "0.bias", "2.weight"}
    assert lf.count({"": ticket.masks["0.weight"]}).kept == 48 - round(0.7 * 48)
    torch.testing.assert_close(lf.to_module(ticket, model)(x), wanted)
    assert torch_prune.is_pruned(module)  # it stays as it is
    with pytest.raises(UserError, match="nothing in it is pruned"):
        lf.from_pruned(nn.Linear(2, 2))


def test_tickets_move_to_other_heads() -> None:
    old, new = build("lenet5", (1, 28, 28), 10), build("lenet5", (1, 28, 28), 26)
    ticket = lf.ticket(lf.prune(density=0.2)(lf.init(old)))
    moved = lf.with_new_head(ticket, new, seed=4)
    assert moved.params["fc3.weight"].shape == (26, 84)
    assert bool(moved.masks["fc3.weight"].all())
    assert torch.equal(moved.params["conv1.weight"], ticket.params["conv1.weight"])
    assert torch.equal(moved.masks["fc1.weight"], ticket.masks["fc1.weight"])
    with pytest.raises(UserError, match=r"fc3.weight is \(10, 84\) and \(26, 84\)"):
        lf.to_module(ticket, new)
    with pytest.raises(UserError, match="none of its pruned weights fits"):
        lf.with_new_head(ticket, lf.models.conv2((1, 28, 28)))


def test_starting_from_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torchvision.models.squeezenet1_1(num_classes=5)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    x, y = torch.rand(20, 3, 64, 64), torch.randint(0, 5, (20,))
    data = lf.data.from_tensors("d", (x, y), (x, y), val=4, classes=5)
    model = build_for("torchvision:squeezenet1_1", data, weights=str(tmp_path / "net.safetensors"))
    assert all(torch.equal(leaf, net.state_dict()[name]) for name, leaf in lf.init(model, seed=8).params.items())
    other = build_for("torchvision:squeezenet1_1", data._replace(classes=7), weights=str(tmp_path / "net.safetensors"))
    assert lf.init(other, 1).params["classifier.1.weight"].shape[0] == 7
    assert torch.equal(lf.init(other, 1).params["features.0.weight"], net.state_dict()["features.0.weight"])
    heads = [lf.init(other, seed).params["classifier.1.weight"] for seed in (1, 2)]
    assert not torch.equal(*heads)
    # By name: PyTorch's own file of them, where torch.hub keeps it; nothing is downloaded.
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    with pytest.raises(UserError, match=r"'DEFAULT' of squeezenet1_1 is not on this disk: put https://.*\.pth into"):
        build_for("torchvision:squeezenet1_1", data, weights="DEFAULT")
    folder = tmp_path / "hub" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    name = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    whole = torchvision.models.squeezenet1_1()
    torch.save(whole.state_dict(), folder / name)
    with pytest.raises(UserError, match=r"its SHA-256 begins with .*, and its name tells"):  # other weights
        build_for("torchvision:squeezenet1_1", data, weights="DEFAULT")
    monkeypatch.setattr("lthfunc.models.checkpoint_reader._check_name", lambda path: None)
    model = build_for("torchvision:squeezenet1_1", data, weights="DEFAULT")
    assert torch.equal(lf.init(model).params["features.0.weight"], whole.state_dict()["features.0.weight"])
    (folder / name).write_bytes(b"nothing")
    for weights, words in (
        ("DEFAULT", "cannot be read"),
        ("IMAGENET1K_V9", "unknown name 'IMAGENET1K_V9'; did you mean 'IMAGENET1K_V1'"),
        ("absent.safetensors", "a file that is there"),
    ):
        with pytest.raises(UserError, match=words):
            build_for("torchvision:squeezenet1_1", data, weights=weights)
    with pytest.raises(UserError, match=r"a file \(.safetensors, .*\), or the name of torchvision's or timm's weights"):
        build_for("lenet300", data, weights="DEFAULT")
    with pytest.raises(UserError, match=r"does not fit the network lenet300 \(missing: fc1\.weight"):
        build_for("lenet300", data, weights=str(tmp_path / "net.safetensors"))


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
def test_networks_of_timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    import timm

    name = "timm:mobilenetv3_small_050"
    x, y = torch.rand(20, 3, 32, 32), torch.arange(20) % 5
    data = lf.data.from_tensors("d", (x, y), (x, y), val=4)
    model = build_for(name, data, prune_only=["*conv*.weight"])
    assert "classifier.weight" not in model.prunable
    assert len(model.prunable) > 40
    lf.train(model, data, optimizer=lf.sgd(0.01), steps=1, batch_size=8)(lf.prune(density=0.5)(lf.init(model)))
    whole = timm.create_model("mobilenetv3_small_050")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *given: None)
    with pytest.raises(UserError, match=r"is not on this disk: model\.safetensors of timm/"):
        build_for(name, data, weights="DEFAULT")
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *given: str(tmp_path / "model.safetensors"))
    params = lf.init(build_for(name, data, weights="DEFAULT")).params
    assert torch.equal(params["conv_stem.weight"], whole.conv_stem.weight)
    assert params["classifier.weight"].shape[0] == 5
    for option in ("checkpoint_path", "pretrained"):  # what they load would be drawn anew
        with pytest.raises(UserError, match=rf"^arch_option: {option} loads weights, .*; weights FILE.safetensors"):
            build_for(name, data, {option: "net.pth"})
    with pytest.raises(UserError, match="DEFAULT, or a tag of mobilenetv3_small_050"):
        build_for(name, data, weights="none")


OWN = """
import torch
from torch import Tensor, nn
import torch.nn.functional as F
import lthfunc as lf


class Two(nn.Module):
    def __init__(self, shapes):
        super().__init__()
        (channels, *_), (count,) = shapes
        self.see, self.read, self.out = nn.Conv2d(channels, 4, 3), nn.LazyLinear(8), nn.Linear(152, 3)

    def forward(self, image, numbers):
        both = torch.relu(torch.cat([self.see(image).flatten(1), self.read(numbers)], 1))
        return {"most": image.amax((1, 2, 3)), "kind": self.out(both)}


def data(size=60):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(size, 1, 8, 8, generator=draw), torch.randn(size, 5, generator=draw)
    y = (x[1][:, 0] > 0).long()
    return lf.data.from_tensors("two", (x, y), (x, y), val=10, classes=3)


def loss(outputs, targets):
    return F.cross_entropy(outputs["kind"], targets)


def right(outputs, targets):
    return (outputs["kind"].argmax(1) == targets).double().mean()


def biggest(params, masks):
    return {name: params[name].abs() for name in masks}


def slow(lr, weight_decay):
    return lf.sgd(lr * 0.5, weight_decay=weight_decay)


def pair(lr):
    init = lambda params: ()
    return init, lambda grads, state, params, step: ({k: p - 0.01 * grads[k] - 0.001 for k, p in params.items()}, ())


class Keeping(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.fc, self.last = nn.Linear(64, classes), torch.zeros(1)

    def forward(self, x):
        self.last = 0.5 * (self.last + self.fc(x.flatten(1)))
        return self.last
"""


def test_everything_of_ones_own_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Typed: a network of two inputs with a dictionary of outputs, its data, loss, metric, score and optimiser."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    command = (
        "prune --arch mine.py:Two --dataset mine.py:data --dataset-option size=80 --loss mine.py:loss --metric "
        "mine.py:right --score mine.py:biggest --optimizer mine.py:slow --rounds 1 --steps 4 --batch-size 10 --out run"
    )
    assert main(command.split()) == 0, capsys.readouterr().err
    assert main([*command.split()[:-1], "again", "--optimizer", "mine.py:pair"]) == 0
    state = lf.load_tree(tmp_path / "again" / "seed0" / "round01" / "params.safetensors")[0]["params"]
    masks = lf.load_tree(tmp_path / "again" / "seed0" / "round01" / "masks.safetensors")[0]["masks"]
    assert all(not state[name][~mask].any() for name, mask in masks.items())  # though the pair moves all weights
    assert main(command.replace("--loss mine.py:loss", "").replace("--out run", "--out r").split()) == 2
    assert "returns a dict of most, kind, without an entry called logits; pass a loss and" in capsys.readouterr().err
    assert main(["prune", "--arch", "mine.py:Keeping", "--steps", "2", "--rounds", "0", "--out", "k"]) == 2
    assert "keeps last from call to call outside of buffers" in capsys.readouterr().err
