"""Architectures: the papers' counts, every data set's shape, and pairs that cannot work."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
import torch

import lthfunc as lf
from lthfunc.catalog.data_sets import DATASETS
from lthfunc.catalog.networks import NETWORKS
from lthfunc.errors import UserError
from lthfunc.models import build
from lthfunc.trees.model import apply_training

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
#: Those that are built in no time.
LIGHT = ["lenet300", "lenet5", "conv4", "vgg11", "resnet20", "wrn-22-2"]
IMAGES = [name for name in NETWORKS if NETWORKS[name].inputs == "images"]

#: (weights to prune, all parameters), from the layer sizes in the papers.
COUNTS = {
    ("lenet300", MNIST): (784 * 300 + 300 * 100 + 100 * 10, 266_610),
    ("lenet5", MNIST): (25 * 6 + 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10, 61_706),
    ("conv2", CIFAR): (9 * (3 * 64 + 64 * 64) + 256 * 64 * 256 + 256 * 256 + 2560, 4_301_642),
    ("conv4", CIFAR): (9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 64 * 128 * 256 + 256 * 256 + 2560, 2_425_930),
    ("conv6", CIFAR): (2_261_184, 2_262_602),
    ("resnet20", CIFAR): (268_336, 269_722),
    ("resnet18", CIFAR): (11_164_352, 11_173_962),
    ("resnet34", CIFAR): (21_265_088, 21_282_122),
    ("resnet50", CIFAR): (23_467_712, 23_520_842),
    ("resnet32", CIFAR): (461_872, 464_154),
    ("resnet56", CIFAR): (848_944, 853_018),
    ("lenet5-wide", MNIST): (9 * (64 + 64 * 64) + 64 * 196 * 256 + 256 * 256 + 2560, 3_317_450),
    ("alexnet", CIFAR): (23_262_912, 23_272_266),
    ("vgg11", CIFAR): (9_222_848, 9_231_114),
    ("vgg13", CIFAR): (9_407_168, 9_416_010),
    ("vgg16", CIFAR): (14_715_584, 14_728_266),
    ("vgg19", CIFAR): (20_024_000, 20_040_522),
    ("wrn-22-2", CIFAR): (1_076_912, 1_079_642),
    ("wrn-28-10", CIFAR): (36_461_232, 36_479_194),
    ("densenet121", CIFAR): (6_872_768, 6_956_426),
    ("vit-tiny", CIFAR): (12 * 12 * 192 * 192 + 48 * 192 + 1920, 5_362_762),
    ("char-transformer", (64,)): (4 * 12 * 128 * 128 + 2 * 65 * 128, 818_176),
    ("lstm", (64,)): (2 * 65 * 256 + 4 * 4 * 256 * 256, 1_086_017),
    ("unet", CIFAR): (
        9 * (3 * 16 + sum(w * w for w in (16, 32, 64, 128)) + sum(2 * w * w for w in (16, 32, 64)))
        + (4 * 2 + 9 * 3) * sum(w * w for w in (16, 32, 64))
        + 160,
        482_890,
    ),
}


def test_every_architecture_is_counted() -> None:
    assert {name for name, _ in COUNTS} == set(NETWORKS)


@pytest.mark.parametrize(("name", "shape"), COUNTS)
def test_architectures_have_the_papers_sizes(name: str, shape: tuple[int, ...]) -> None:
    text = NETWORKS[name].inputs == "text"
    state = lf.init(build(name, shape, 65 if text else 10, inputs="text" if text else "numbers"))
    weights, parameters = COUNTS[name, shape]
    assert lf.count(state.masks).total == weights
    assert sum(leaf.numel() for leaf in state.params.values()) == parameters


@pytest.mark.parametrize("arch", LIGHT)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_pair_gives_logits_or_a_reason(arch: str, dataset: str) -> None:
    known = DATASETS[dataset]
    if min(known.shape[1:]) < NETWORKS[arch].min_side:
        with pytest.raises(UserError, match=rf"'{arch}' needs images of at least .* these are 8×8 \(fitting: lenet300"):
            build(arch, known.shape, known.classes)
        return
    model = build(arch, known.shape, known.classes)
    state = lf.init(model)
    with torch.no_grad():
        logits, _ = apply_training(model, state.params, state.buffers, torch.randn(3, *known.shape))
    assert logits.shape == (3, known.classes)


@pytest.mark.parametrize("arch", IMAGES)
def test_the_stated_least_image_works(arch: str) -> None:
    side = NETWORKS[arch].min_side
    model = build(arch, (1, side, side), 4)
    state = lf.init(model)
    logits, _ = apply_training(model, state.params, state.buffers, torch.randn(2, 1, side, side))
    assert logits.shape == ((2, 4, side, side) if NETWORKS[arch].targets == "pixels" else (2, 4))
    with pytest.raises(UserError, match=f"needs images of at least {side}×{side}, these are {side}×{side - 1}"):
        build(arch, (1, side, side - 1), 4)


def test_aliases_near_misses_and_inputs_that_are_no_images() -> None:
    assert build("FC1", MNIST, 10).name == "lenet300"
    with pytest.raises(UserError, match="unknown name 'lenet6'; did you mean 'lenet5'"):
        build("lenet6", MNIST, 10)
    with pytest.raises(UserError, match=r"works on images .* not on inputs of shape \(20,\)"):
        build("conv2", (20,), 10)
    assert lf.init(build("lenet300", (20,), 3)).params["fc1.weight"].shape == (300, 20)


OWN = """
import math
import torch
from torch import nn


def small(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


class Wide(nn.Module):
    def __init__(self, num_classes, *, input_shape, width=16, activation="relu"):
        super().__init__()
        self.a, self.b = nn.Linear(math.prod(input_shape), width), nn.Linear(width, num_classes)
        self.f = getattr(torch, activation)

    def forward(self, x):
        return self.b(self.f(self.a(x.flatten(1))))


def fixed():
    return small((1, 8, 8), 10)


def narrow(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, classes))


def few(shape, classes):
    return small(shape, classes - 1)


def nothing():
    return None


def pair():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(64, 10)

        def forward(self, x):
            return {"scores": self.fc(x.flatten(1)), "inputs": x}

    return Pair()


def raising(classes):
    raise KeyError("no such table")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / f"ownnets_{tmp_path.name.replace('-', '_')}.py"
    file.write_text(OWN)
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize("form", ["module", "file"])
def test_ones_own_network_is_given_what_its_signature_accepts(own: Path, form: str) -> None:
    prefix = own.stem if form == "module" else f"./{own.name}"
    shape = (1, 8, 8)
    for name, options, weights in (
        ("small", {}, 640),
        ("fixed", {}, 640),
        ("Wide", {}, 64 * 16 + 160),
        ("Wide", {"width": "5", "activation": "tanh"}, 64 * 5 + 50),
    ):
        model = build(f"{prefix}:{name}", shape, 10, options)
        assert lf.count(lf.init(model).masks).total == weights


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "narrow",
            {},
            r"cannot take inputs of shape \(1, 8, 8\) in 1, Linear\(in_features=7, .*2x64 and 7x10",
        ),
        ("few", {}, r"gives outputs of shape \(9,\), not \(10,\)"),
        ("nothing", {}, "returned a NoneType, not an nn.Module"),
        ("pair", {}, r"^arch: .*returns a dict of scores, inputs, without an entry called logits"),
        ("absent", {}, "cannot import .* has no 'absent'"),
        ("raising", {}, r"called with classes=10 fails \(line \d+ of .*py: raise KeyError\(.no such table.\)\)"),
        ("Wide", {"width": "'x'"}, r"fails .*self.a"),
        ("Wide", {"widht": "3"}, r"^arch_option: unknown name 'widht'; did you mean 'width'"),
    ],
)
def test_ones_own_mistakes_are_told_with_ones_own_line(
    own: Path, name: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        build(f"{own.name}:{name}", (1, 8, 8), 10, options)
    assert "\n" not in str(caught.value)


def test_files_and_modules_that_are_not_there_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="cannot import 'no_such:x'"):
        build("no_such:x", (1, 8, 8), 10)
    with pytest.raises(UserError, match=r"there is no file nets\.py"):
        build("nets.py:x", (1, 8, 8), 10)
    (tmp_path / "broken.py").write_text("import torch\n\nsize = 1 / 0\n")
    with pytest.raises(
        UserError, match=r"cannot import .* \(line 3 of .*broken\.py: size = 1 / 0\) \(division by zero\)"
    ):
        build("broken.py:x", (1, 8, 8), 10)


def test_classes_of_torch_itself() -> None:
    with pytest.raises(UserError, match=r"'torch.nn:Linear' needs in_features, out_features; it is offered shape"):
        build("torch.nn:Linear", (64,), 10)
    model = build("torch.nn:Linear", (64,), 10, {"in_features": "64", "out_features": "10"})
    assert lf.count(lf.init(model).masks).total == 640


def test_networks_of_torchvision_by_name() -> None:
    model = build("torchvision:squeezenet1_1", (3, 64, 64), 7)
    assert model.name == "squeezenet1_1"
    assert lf.init(model).params["classifier.1.weight"].shape[0] == 7
    with pytest.raises(UserError, match="unknown name 'resnet19'; did you mean 'resnet1"):
        build("torchvision:resnet19", (3, 64, 64), 7)
    with pytest.raises(UserError, match=r"'torchvision:resnet18' cannot take inputs of shape \(1, 28, 28\)"):
        build("torchvision:resnet18", (1, 28, 28), 10)
    with pytest.raises(UserError, match=r"invalid value 'width' \(expected nothing with lenet300"):
        build("lenet300", (1, 28, 28), 10, {"width": "3"})


def test_installed_packages_add_networks(monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    point = importlib.metadata.EntryPoint("mine", f"{own.stem}:small", "lthfunc.models")
    found = importlib.metadata.EntryPoints([point])
    monkeypatch.syspath_prepend(str(own.parent))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **given: found.select(**given))
    assert lf.count(lf.init(build("mine", (1, 8, 8), 10)).masks).total == 640
    with pytest.raises(UserError, match=r"unknown name 'mien'.*mine\)"):
        build("mien", (1, 8, 8), 10)
