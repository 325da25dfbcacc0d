"""Architectures: the papers' counts, every data set's shape, and pairs that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lthfunc as lf
from lthfunc.data.catalog import DATASETS
from lthfunc.errors import UserError
from lthfunc.models import build
from lthfunc.models.catalog import ARCHS
from lthfunc.trees.model import apply_training

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

#: (weights to prune, all parameters), from the layer sizes in the papers.
COUNTS = {
    ("lenet300", MNIST): (784 * 300 + 300 * 100 + 100 * 10, 266_610),
    ("lenet5", MNIST): (25 * 6 + 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10, 61_706),
    ("conv2", CIFAR): (9 * (3 * 64 + 64 * 64) + 256 * 64 * 256 + 256 * 256 + 2560, 4_301_642),
    ("conv4", CIFAR): (9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 64 * 128 * 256 + 256 * 256 + 2560, 2_425_930),
    ("conv6", CIFAR): (2_261_184, 2_262_602),
    ("resnet20", CIFAR): (268_336, 269_722),
    ("resnet18", CIFAR): (11_164_352, 11_173_962),
}


@pytest.mark.parametrize(("name", "shape"), COUNTS)
def test_architectures_have_the_papers_sizes(name: str, shape: tuple[int, ...]) -> None:
    state = lf.init(build(name, shape, 10))
    weights, parameters = COUNTS[name, shape]
    assert lf.count(state.masks).total == weights
    assert sum(leaf.numel() for leaf in state.params.values()) == parameters


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dataset", DATASETS)
def test_every_pair_gives_logits_or_a_reason(arch: str, dataset: str) -> None:
    known = DATASETS[dataset]
    if min(known.shape[1:]) < ARCHS[arch].min_side:
        with pytest.raises(UserError, match=rf"'{arch}' needs images of at least .* these are 8×8 \(fitting: lenet300"):
            build(arch, known.shape, known.classes)
        return
    model = build(arch, known.shape, known.classes)
    state = lf.init(model)
    with torch.no_grad():
        logits, _ = apply_training(model, state.params, state.buffers, torch.randn(3, *known.shape))
    assert logits.shape == (3, known.classes)


@pytest.mark.parametrize("arch", [name for name in ARCHS if ARCHS[name].min_side > 1])
def test_the_stated_least_image_works(arch: str) -> None:
    side = ARCHS[arch].min_side
    model = build(arch, (1, side, side), 4)
    state = lf.init(model)
    logits, _ = apply_training(model, state.params, state.buffers, torch.randn(2, 1, side, side))
    assert logits.shape == (2, 4)
    with pytest.raises(UserError, match="needs images of at least"):
        build(arch, (1, side, side - 1), 4)


def test_aliases_near_misses_and_inputs_that_are_no_images() -> None:
    assert build("FC1", MNIST, 10).name == "lenet300"
    with pytest.raises(UserError, match="unknown name 'lenet6'; did you mean 'lenet5'"):
        build("lenet6", MNIST, 10)
    with pytest.raises(UserError, match=r"works on images .* not on inputs of shape \(20,\)"):
        build("conv2", (20,), 10)
    assert lf.init(build("lenet300", (20,), 3)).params["fc1.weight"].shape == (300, 20)


def test_ones_own_network_by_name_and_its_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownnets.py").write_text(
        "import math, torch\n"
        "def small(shape, classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(shape), classes))\n"
        "def narrow(shape, classes): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(7, classes))\n"
        "def few(shape, classes): return small(shape, classes - 1)\n"
        "def nothing(shape, classes): return None\n"
    )
    monkeypatch.chdir(tmp_path)
    assert lf.count(lf.init(build("ownnets:small", (1, 8, 8), 10)).masks).total == 640
    for name, words in {
        "narrow": r"cannot take inputs of shape \(1, 8, 8\)",
        "few": r"gives outputs of shape \(9,\), not \(10,\)",
        "nothing": "returned a NoneType, not an nn.Module",
        "absent": "cannot import",
    }.items():
        with pytest.raises(UserError, match=words):
            build(f"ownnets:{name}", (1, 8, 8), 10)
    with pytest.raises(UserError, match="cannot import 'no_such:x'"):
        build("no_such:x", (1, 8, 8), 10)
