"""Pairs mixed with their targets, on every engine, and augmentations by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run
from test_augmentations import EVERY, KEY, SCALE, applied, pixels
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.objective import augmentation_of
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping, json_schema
from lthfunc.experiments.trust import code_in
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.training.batches import batches
from lthfunc.trees.augmenting import Augment
from lthfunc.trees.rng import counter_key, fold_in


@pytest.mark.parametrize("make", [lf.mixup, lf.cutmix, lf.mixup_or_cutmix])
def test_pairs_are_mixed_as_their_targets_are(make: Callable[..., Augment]) -> None:
    images, y = pixels(41).float() + 1, torch.arange(41) % 5
    x, soft = make(5, 0.7)(images, y, KEY)
    torch.testing.assert_close(soft.sum(1), torch.ones(41))
    kinds = set()
    for i in range(40):
        own, other = images[i], images[i ^ 1]
        share = float(soft[i, y[i]])
        assert float(soft[i ^ 1, y[i ^ 1]]) == pytest.approx(share, abs=1e-6)  # both of a pair have one share
        if share == 1:
            assert torch.equal(x[i], own)
        elif torch.allclose(x[i], share * own + (1 - share) * other, atol=1e-2):
            kinds.add("mixup")
        else:
            from_other = (x[i] == other).all(0)
            assert torch.equal(x[i], torch.where(from_other, other, own))
            rows, columns = from_other.any(1), from_other.any(0)
            assert torch.equal(from_other, rows[:, None] & columns)  # a rectangle
            assert float(from_other.double().mean()) == pytest.approx(1 - share, abs=1e-6)
            kinds.add("cutmix")
    assert kinds == set(make.__name__.split("_or_"))
    assert torch.equal(x[40], images[40])  # without a partner
    assert torch.equal(soft[40], nn.functional.one_hot(y[40], 5).float())
    again, softer = make(5, 0.7)(x, soft, KEY)  # targets that are mixed already
    assert (again.shape, softer.shape) == (x.shape, soft.shape)
    numbers = torch.rand(41, 2)
    torch.testing.assert_close(make(None, 0.7)(images, numbers, KEY)[1].sum(), numbers.sum())
    for bad in (torch.zeros(41, 3).long(), y):
        with pytest.raises(UserError, match="works on targets that are a class for each example, or numbers"):
            make(5 if bad.ndim == 2 else None)(images, bad, KEY)


def test_the_sparse_engine_trains_on_mixed_targets_as_the_eager_one_does(few_digits: lf.Dataset) -> None:
    """The loss is Python's then; the metric, which takes classes alone, is not asked of mixed targets."""
    if why_no_kernels() is not None:
        pytest.skip(str(why_no_kernels()))
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)))
    augment = lf.augmentations(lf.random_resized_crop(0.5), lf.cutout(2), lf.mixup_or_cutmix(10, 0.4))

    def trained(engine: Any) -> lf.Fit:
        trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), augment=augment, engine=engine,
                                  metric=lf.top_k(2))  # fmt: skip
        return lf.fit(trainer, lf.init(model), seed=5, until=12, eval_every=6)

    wanted, found = trained("eager"), trained(lf.sparse_engine)
    torch.testing.assert_close(found.state.params, wanted.state.params, rtol=1e-4, atol=1e-5)
    assert [point.train_loss for point in found.curve[1:]] == pytest.approx(
        [point.train_loss for point in wanted.curve[1:]], rel=1e-4
    )


def by_hand(data: lf.Dataset, steps: int) -> dict[str, Tensor]:
    """A plain loop that trains on mixed targets with torch.optim."""
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    params = {name: leaf.clone().requires_grad_() for name, leaf in lf.init(model).params.items()}
    optimizer, key = torch.optim.SGD(params.values(), 0.1), counter_key(5, "step")
    for step, (x, y) in enumerate(batches(data.train, 60, 5, 0, steps)):
        x, soft = lf.mixup(10)(x, y, fold_in(key, torch.tensor(step)))
        logits = x.flatten(1) @ params["1.weight"].T + params["1.bias"]
        optimizer.zero_grad()
        (-(soft * logits.log_softmax(1)).sum(1)).mean().backward()
        optimizer.step()
    return params


def test_a_loop_by_hand_agrees(few_digits: lf.Dataset) -> None:
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), augment=lf.mixup(10))
    found = lf.take_steps(trainer, lf.init(model), seed=5, until=7)[0]
    torch.testing.assert_close(found.params, by_hand(few_digits, 7), rtol=1e-5, atol=1e-6)


def test_names_make_augmentations(digits: lf.Dataset) -> None:
    stored = digits._replace(
        train=lf.Split((digits.train.x * 0).byte().expand(-1, 3, -1, -1), digits.train.y), scale=SCALE
    )

    def named(text: Any, data: lf.Dataset = stored) -> Augment | None:
        return augmentation_of(resolved(from_mapping({"augment": text})), data)

    x, y = torch.rand(6, 3, 8, 8), torch.arange(6)
    for name in EVERY:
        if name != "all":
            made = named(name)
            assert made is not None
            wanted = {"mixup": lf.mixup(10), "cutmix": lf.cutmix(10), "mixup-or-cutmix": lf.mixup_or_cutmix(10)}
            torch.testing.assert_close(applied(made, x, y, KEY), applied(wanted.get(name, EVERY[name]), x, y, KEY))
    for text, like in (
        ("shift:2", lf.shift(2)), ("resized-crop:0.5", lf.random_resized_crop(0.5)), ("cutout:3", lf.cutout(3)),
        ("color-jitter:0.1", lf.color_jitter(SCALE, 0.1)), ("randaugment:3:20", lf.rand_augment(SCALE, 3, 20)),
        ("erasing:1", lf.random_erasing(1)), ("mixup:1", lf.mixup(10, 1)),
        ("flip,cutout:3", lf.augmentations(lf.mirror, lf.cutout(3))),
    ):  # fmt: skip
        made = named(text)
        assert made is not None
        torch.testing.assert_close(applied(made, x, y, KEY), applied(like, x, y, KEY))
    assert named("none") is None
    assert (resolved(from_mapping({"augment": True})).augment, named(False)) == ("flip-crop", None)  # as in 0.1.0
    for text, words in {
        "flipp": "--augment: unknown name 'flipp'; did you mean 'flip'",
        "flip,": "--augment: unknown name ''",
        "none,flip": "--augment: invalid value 'none,flip' (expected none, or others)",
        "cutout:0": "--augment: cutout: side: invalid value 0 (expected a number of pixels above 0)",
        "mixup:0": "--augment: mixup: alpha: invalid value 0 (expected a number above 0)",
        "resized-crop:1.5": "--augment: random_resized_crop: least: invalid value 1.5 (expected a number in (0, 1])",
        "randaugment:2:31": "--augment: rand_augment: magnitude: invalid value 31 (expected a whole number from 0",
    }.items():
        with pytest.raises(UserError) as caught:
            named(text)
        assert str(caught.value).startswith(words)
    with pytest.raises(UserError, match="--augment: color_jitter: works on images stored as pixels"):
        named("color-jitter", digits)
    flat = digits._replace(train=lf.Split(digits.train.x.flatten(1), digits.train.y))
    with pytest.raises(UserError, match=r"--augment: cutmix works on images, not on inputs of shape \(64,\)"):
        named("cutmix", flat)
    assert named("mixup", flat) is not None
    pattern = json_schema()["properties"]["augment"]["pattern"]
    texts = {"none": True, "flip,mixup:0.4": True, "f.py:g,flip": True, "flipp": False, "flip,": False}
    assert {text: bool(re.search(pattern, text)) for text in texts} == texts
    assert code_in({"augment": "flip,mine.py:noise"}) == {"augment": ["mine.py:noise"]}


def test_augmentations_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "def fade(inputs, targets, key):\n    return inputs * 0.5, targets\n\n"
        "def halved(inputs, targets, key):\n    return inputs, targets[::2]\n"
    )
    command = ["prune", "--rounds", 1, "--steps", 20, "--engine", "eager", "--replicates", 2]
    assert run(*command, "--augment", "flip-crop,mine.py:fade,mixup:0.4", "--out", "run") == 0
    assert run("verify", "run") == 0
    assert 'augment = "flip-crop,mine.py:fade,mixup:0.4"' in Path("run/config.toml").read_text()
    capsys.readouterr()
    assert run(*command, "--augment", "mine.py:halved", "--out", "no") == 2
    assert "augment: 'halved' returned int64 of shape (4,) as targets of 8 inputs" in capsys.readouterr().err
    assert run(*command, "--augment", "color-jitter", "--out", "no") == 2
    assert "--augment: color_jitter: works on images stored as pixels" in capsys.readouterr().err
