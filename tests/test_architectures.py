"""Every architecture goes the whole way: initialised, trained, pruned, rewound, measured, saved, read, compacted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.func import functional_call

import lthfunc as lf
from lthfunc.catalog.networks import NETWORKS
from lthfunc.errors import UserError
from lthfunc.models import build
from lthfunc.training.engines.toolchain import why_not

#: Narrower where the whole would take many seconds; test_models.py counts all of them at their full size.
NARROW = {
    "vgg13": {"width": "0.25"},
    "vgg16": {"width": "0.25"},
    "vgg19": {"width": "0.25"},
    "wrn-28-10": {"width": "1"},
    "vit-tiny": {"layers": "3"},
    "lstm": {"width": "32"},
}
#: Not the smallest of their family.
LONG = (
    "alexnet", "resnet18", "resnet32", "resnet34", "resnet50", "resnet56", "wrn-28-10", "densenet121", "vgg11", "vgg13",
    "vgg16", "vgg19",
)  # fmt: skip
CLASSES = 7


def small_case(arch: str, side: int = 16) -> tuple[lf.Model, lf.Dataset]:
    """The network, and two dozen random examples that it takes."""
    text = NETWORKS[arch].inputs == "text"
    shape = (8,) if text else (3, side, side)
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, CLASSES, (24, *shape), generator=draw) if text else torch.randn(24, *shape, generator=draw)
    places = (side, side) if NETWORKS[arch].targets == "pixels" else (8,) if text else ()
    y = torch.randint(0, CLASSES, (24, *places), generator=draw)
    data = lf.data.from_tensors("random", (x, y), (x[:9], y[:9]), val=8, classes=CLASSES)
    return build(arch, shape, CLASSES, NARROW.get(arch), data.inputs), data


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=pytest.mark.long) if arch in LONG else arch for arch in NETWORKS]
)
def test_the_whole_way(arch: str, tmp_path: Path) -> None:
    model, data = small_case(arch)
    start, pixels = lf.init(model, seed=1), NETWORKS[arch].targets == "pixels"
    asked: Any = {"loss": lf.pixel_cross_entropy, "metric": lf.pixel_accuracy} if pixels else {}
    train = lf.train(model, data, optimizer=lf.sgd(0.01, 0.9, weight_decay=1e-3), steps=2, batch_size=8, **asked)
    trained = train(start)
    assert not lf.same_bits(trained.params, start.params)
    pruned = lf.prune(density=0.1)(trained)
    counted = lf.count(pruned.masks)
    assert counted.kept == round(0.1 * counted.total)
    rewound = lf.rewind(to=start)(pruned)
    again = train(rewound)
    for name, mask in again.masks.items():
        assert not again.params[name][~mask].any()
    assert 0 <= lf.accuracy_on(model, again, data, metric=asked.get("metric", lf.accuracy)) <= 1
    lf.save_ticket(tmp_path / "t.safetensors", lf.ticket(rewound))
    ticket, _ = lf.load_ticket(tmp_path / "t.safetensors")
    assert lf.same_bits(ticket, lf.ticket(rewound))
    small = lf.compact(model, ticket, data.shape)
    x = data.test.x[:3]
    wanted = functional_call(model.evaluating, (ticket.params, ticket.buffers), (x,))
    torch.testing.assert_close(small.model.evaluating(x), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    torch.testing.assert_close(lf.to_module(ticket, model)(x), wanted)


@pytest.mark.skipif(why_not("cpu") is not None, reason=str(why_not("cpu")))
@pytest.mark.long
@pytest.mark.parametrize("arch", ["vit-tiny", "char-transformer"])
def test_compiled_equals_eager(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of each; docs/results/networks.md has the time that whole networks take to compile."""
    monkeypatch.setitem(NARROW, arch, {"layers": "1"})
    model, data = small_case(arch)
    start = lf.prune(density=0.3)(lf.init(model))
    ends = [
        lf.train(model, data, optimizer=lf.sgd(0.01, 0.9), steps=3, batch_size=8, engine=engine)(start)
        for engine in ("eager", "compile")
    ]
    for name, leaf in ends[0].params.items():
        torch.testing.assert_close(ends[1].params[name], leaf, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("score", ["grasp", "wanda", "fisher", "synflow"])
@pytest.mark.parametrize("arch", ["vit-tiny", "char-transformer"])
def test_scores_of_transformers(arch: str, score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention has second derivatives; what SynFlow sends is no text."""
    monkeypatch.setitem(NARROW, arch, {"layers": "1", "width": "24", "heads": "2"})
    model, data = small_case(arch)
    state = lf.init(model)
    batches = lf.sample_batches(data, 8, count=2, seed=0)
    loss = lf.loss_of(model, state.buffers)
    if (arch, score) == ("char-transformer", "synflow"):
        with pytest.raises(UserError, match="synflow requires a network with real inputs, but char-transformer reads"):
            lf.forward_of(model, state.buffers)
        return
    made = {
        "grasp": lambda: lf.grasp(loss, batches),
        "wanda": lambda: lf.wanda(lf.input_moments(model, state, [x for x, _ in batches])),
        "fisher": lambda: lf.fisher(loss, batches),
        "synflow": lambda: lf.synflow(lf.forward_of(model, state.buffers), data.shape),
    }[score]()
    assert lf.density(lf.prune(density=0.3, score=made)(state).masks) == pytest.approx(0.3, abs=1e-3)


def test_options_change_the_network() -> None:
    assert lf.models.resnet20((3, 16, 16), width=2).init(0)[0]["fc.weight"].shape == (10, 128)
    assert lf.models.vit_tiny((1, 28, 28), patch=7, layers=1).init(0)[0]["places"].shape == (17, 192)
    tied = lf.models.char_transformer((16,), 30, tied=True)
    assert "head.weight" not in tied.init(0)[0]
    assert tied.prunable[0] == "characters.weight"


@pytest.mark.parametrize(
    ("arch", "shape", "options", "words"),
    [
        ("vit-tiny", (3, 30, 30), {}, r"patches of 4×4 tile \(option patch=N\), these are 30×30"),
        ("vit-tiny", (3, 32, 32), {"width": "100"}, r"invalid value 'width=100' \(expected a multiple of the 3 heads"),
        ("resnet20", (3, 32, 32), {"wide": "2"}, r"^arch_option: unknown name 'wide'; did you mean 'width'"),
        ("unet", (3, 36, 32), {}, r"'unet' halves images 3 times \(option depth=N\), and these are 36×32"),
        ("unet", (3, 32, 32), {"depth": "0"}, r"invalid value 'depth=0' \(expected a whole number of at least"),
        ("vit-tiny", (3, 32, 32), {"layers": "0"}, r"'layers=0' \(expected a whole number of at least 1"),
        ("vit-tiny", (3, 32, 32), {"heads": "-1"}, r"'heads=-1' \(expected a whole number of at least 1"),
        ("lenet300", (64,), {"layers": "2"}, "invalid value 'layers' \\(expected nothing with lenet300"),
        ("resnet20", (3, 32, 32), {"width": "0"}, r"'width=0' \(expected a number above 0"),
        ("resnet20", (3, 32, 32), {"width": "nan"}, r"'width=nan' \(expected a number above 0"),
        ("resnet20", (3, 32, 32), {"width": "wide"}, r"'width=wide' \(expected a number above 0"),
        ("char-transformer", (3, 32, 32), {}, r"works on text, numbers of characters .* not on numbers of shape"),
    ],
)
def test_networks_that_cannot_be(arch: str, shape: tuple[int, ...], options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        build(arch, shape, 10, options)
