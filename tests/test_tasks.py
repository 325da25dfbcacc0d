"""Optimisers, schedules and recipes by name, as published."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.experiment import settings_of
from lthfunc_cli.main import main
from lthfunc_cli.options import Sources
from torch import nn

import lthfunc as lf
from lthfunc.catalog.recipes import RECIPES
from lthfunc.catalog.training import OPTIMIZERS, SCHEDULES
from lthfunc.errors import UserError
from lthfunc.experiments import recipes
from lthfunc.experiments.objective import make_optimizer, schedule_of
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.sparse.kernels.build import why_no_kernels

needs_torch_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")


@needs_torch_muon
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 6)])
def test_muon_is_torchs(shape: tuple[int, int], nesterov: bool) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = nn.Parameter(start.clone())
    optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=nesterov)
    ours = lf.muon(0.02, 0.9, nesterov, weight_decay=0.1)
    params = {"w": start.clone()}
    state = ours.init(params)
    for step in range(6):
        grad = torch.randn(shape, generator=torch.Generator().manual_seed(step + 1))
        theirs.grad = grad.clone()
        optimizer.step()
        params, state = ours.update({"w": grad}, state, params, torch.tensor(step))
    # Both iterate in bfloat16, of 8 bits; ours divides out of place.
    torch.testing.assert_close(params["w"], theirs.detach(), rtol=0, atol=2e-3 * 0.02 * 6)


def test_muon_takes_convolutions_as_matrices_and_adamw_for_the_rest() -> None:
    params = {"conv": torch.randn(4, 3, 3, 3), "bias": torch.randn(4)}
    grads = {name: torch.randn_like(leaf) for name, leaf in params.items()}
    ours = lf.muon(0.02, weight_decay=0.01, others=0.5)
    new, _ = ours.update(grads, ours.init(params), params, torch.tensor(0))
    flat = lf.muon(0.02, weight_decay=0.01)
    matrix = {"conv": params["conv"].flatten(1)}
    wanted, _ = flat.update({"conv": grads["conv"].flatten(1)}, flat.init(matrix), matrix, torch.tensor(0))
    assert torch.equal(new["conv"].flatten(1), wanted["conv"])
    other = lf.adamw(0.01, weight_decay=0.01)
    bias = {"bias": params["bias"]}
    wanted, _ = other.update({"bias": grads["bias"]}, other.init(bias), bias, torch.tensor(0))
    torch.testing.assert_close(new["bias"], wanted["bias"])


def test_lion_by_hand() -> None:
    """Chen et al. 2023, alg. 2, over steps enough for the two betas to tell."""
    ours = lf.lion(0.1, betas=(0.9, 0.99), weight_decay=0.2)
    draws = np.random.default_rng(0).normal(size=(41, 20)) * 10.0 ** np.arange(-2, 2).repeat(5)
    draws[:, -1] = 0
    w, slopes = draws[0], draws[1:]
    params = {"w": torch.tensor(w)}
    state, momentum = ours.init(params), np.zeros(20)
    for step, slope in enumerate(slopes):
        params, state = ours.update({"w": torch.tensor(slope)}, state, params, torch.tensor(step))
        w = w - 0.1 * (np.sign(0.9 * momentum + 0.1 * slope) + 0.2 * w)
        momentum = 0.99 * momentum + 0.01 * slope
        np.testing.assert_allclose(params["w"].numpy(), w, rtol=1e-9)
    assert params["w"][-1] == 0  # no gradient, no step: a pruned weight stays


@pytest.mark.parametrize("name", ["sgd", "lion", "muon"])
@pytest.mark.parametrize("engine", ["eager", pytest.param("compile", marks=pytest.mark.long)])
def test_pruned_weights_stay_zero_under_every_optimiser(few_digits: lf.Dataset, name: str, engine: str) -> None:
    if engine == "compile" and why_no_kernels() is not None:
        pytest.skip(str(why_no_kernels()))
    optimizer = {"sgd": lf.sgd(0.1, 0.9), "lion": lf.lion(1e-3, weight_decay=0.1), "muon": lf.muon(0.02)}[name]
    model = lf.models.lenet300(few_digits.shape)
    start = lf.prune(density=0.2)(lf.init(model))
    end = lf.train(model, few_digits, optimizer=optimizer, steps=5, engine=engine)(start)
    for leaf, mask in start.masks.items():
        assert not end.params[leaf][~mask].any()
        assert not torch.equal(end.params[leaf], start.params[leaf])


def test_muon_on_the_sparse_engine_is_refused(capsys: Any, tmp_path: Path) -> None:
    command = f"prune --optimizer muon --engine sparse --rounds 1 --steps 2 --out {tmp_path / 'r'}"
    assert main(command.split()) == 2
    assert "sparse" in capsys.readouterr().err
    command = f"prune --optimizer muon --compact --rounds 1 --steps 2 --out {tmp_path / 'r'}"
    assert main(command.split()) == 2
    assert "--compact: does not work with --optimizer muon" in capsys.readouterr().err


def test_one_cycle_is_torchs() -> None:
    steps, lr = 57, 0.3
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step() if len(rates) < steps else None
    np.testing.assert_allclose(lf.one_cycle(lr, steps).numpy(), rates, rtol=1e-9)


def test_triangles_and_trapezes_have_their_corners() -> None:
    table = lf.triangular(2.0, 100, rise=0.25, start=0.1, end=0.0)
    assert table.shape == (101,)
    assert table[[0, 25, 100]].tolist() == pytest.approx([0.2, 2.0, 0.0])
    np.testing.assert_allclose(np.diff(table.numpy(), 2)[[3, 60]], 0, atol=1e-12)  # straight on both sides
    table = lf.trapezoidal(2.0, 100, rise=0.1, fall=0.2)
    assert table[[9, 10, 50, 80]].tolist() == pytest.approx([2.0] * 4)
    assert table[[0, 90, 100]].tolist() == pytest.approx([0.2, 1.0, 0.0])
    with pytest.raises(UserError, match=r"a share that leaves room for rise, 0\.5"):
        lf.trapezoidal(1.0, 10, rise=0.5, fall=0.6)
    with pytest.raises(UserError, match=r"rise: invalid value 2 \(expected a number in \[0, 1\]"):
        lf.triangular(1.0, 10, rise=2)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_every_schedule_by_name_with_warm_up(name: str, warmup: int) -> None:
    config = resolved(from_mapping({"schedule": name, "warmup": warmup, "lr": 0.5, "optimizer": "sgd"}))
    table = schedule_of(config, 60)
    assert float(table.max()) <= 0.5 + 1e-12
    assert float(table.min()) >= 0
    if warmup:
        assert table[0] == pytest.approx(
            float(schedule_of(resolved(from_mapping({"schedule": name, "lr": 0.5})), 60)[0]) / 7
        )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_by_name(name: str) -> None:
    assert make_optimizer(resolved(from_mapping({"optimizer": name})), 10).init({"w": torch.zeros(2, 2)})


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole_and_give_way(name: str) -> None:
    def settings(**given: Any) -> Any:
        return settings_of("prune", Sources(given, name))

    plain = recipes.settings_of(name)
    config = settings(dataset="digits") if "dataset" not in plain else settings()
    for key, value in plain.items():
        found = getattr(config, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
    other = settings(dataset="digits", steps=60, lr=0.5, optimizer="sgd", arch="lenet300")
    assert (other.dataset, other.steps, other.lr, other.epochs, other.milestone) == ("digits", 60, 0.5, None, ())
    with pytest.raises(UserError, match="--recipe: unknown name 'lth-lenets'; did you mean 'lth-lenet'"):
        settings_of("prune", Sources({}, "lth-lenets"))


def test_a_recipe_runs_and_is_listed(tmp_path: Path, capsys: Any) -> None:
    command = f"prune --recipe lth-lenet --dataset digits --steps 30 --rounds 1 --out {tmp_path / 'r'}"
    assert main(command.split()) == 0
    text = (tmp_path / "r" / "config.toml").read_text()
    assert 'allocate = "layerwise"' in text
    capsys.readouterr()
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in RECIPES)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--label-smoothing 1", r"--label-smoothing: invalid value 1.0 (expected a number in [0, 1)"),
        ("--label-smoothing 0.1 --loss mse", "--label-smoothing: requires --loss cross-entropy or next-token, not mse"),
        (
            "--metric top-0",
            "--metric: invalid value 'top-0' (expected top-K, the target is among the K largest outputs; K:",
        ),
        ("--metric top-10", "--metric: invalid value 'top-10' (expected top-K with K below 10, the number of classes)"),
        ("--rewind percent:200", "of the training; K: a whole number from 1 to 99)"),
        (
            "--rewind step",
            "--rewind: invalid value 'step' (expected step:K, the weights of step K; K: a whole number of",
        ),
        (
            "--structure 0x3",
            "--structure: invalid value '0x3' (expected RxC, whole blocks of R outputs by C inputs; R and",
        ),
        (
            "--structure 0:4",
            "--structure: invalid value '0:4' (expected N:M, at most N of every M consecutive inputs; N a",
        ),
        ("--structure 7x7 --rounds 1", "--structure: 7x7 doesn't divide the 300 outputs of fc1.weight"),
        ("--allocate layerwise --layer-rate fc9*=0.3", "--layer-rate: invalid value 'fc9*' (expected a pattern that"),
        ("--augment shift:8", "--augment: shift: pixels: invalid value 8 (expected less than 8, the shorter side of"),
        ("--augment cutout:16", "--augment: cutout: side: invalid value 16 (expected less than 16, of which nothing"),
        ("--arch ../own:Net", "--arch: invalid value '../own:Net' (expected a listed name, module:function or path/to"),
        ("--dataset planted:inputs=9", "--dataset: unknown name 'planted:inputs=9' (expected one of digits, "),
        ("--loss crossentropy", "did you mean 'cross-entropy'"),
        ("--optimizer adamw --momentum 0.9", "--momentum: requires --optimizer sgd or muon, not adamw"),
        ("--optimizer json:dumps", "'json:dumps' needs obj; it is offered lr"),
        ("--optimizer operator:truth --rounds 1", "operator:truth"),
        ("--recipe none", "--recipe: unknown name 'none'"),
        ("--never-prune fc9*", "--never-prune: no parameter matches 'fc9*'"),
        ("--dataset-option size", "--dataset-option: invalid value 'size' (expected NAME=VALUE, e.g. size=32)"),
        ("--dataset-option size=3", "--dataset-option: invalid value 'size' (expected nothing with digits"),
        ("--weights x.safetensors", "--weights: invalid value 'x.safetensors' (expected a file that is there"),
    ],
)
def test_mistakes_are_one_line(options: str, words: str, capsys: Any, tmp_path: Path) -> None:
    assert main([*f"prune --steps 2 --rounds 0 --out {tmp_path / 'r'}".split(), *options.split()]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_defaults_of_the_library_are_those_documented() -> None:
    assert inspect.signature(lf.triangular).parameters["rise"].default == 0.23
