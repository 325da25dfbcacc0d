"""What is learnt and how: losses and metrics by hand, optimisers and schedules as torch.optim has them, recipes."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.experiment import settings_of
from lthfunc_cli.main import main
from small import decided
from torch import nn

import lthfunc as lf
from lthfunc.catalog.recipes import RECIPES
from lthfunc.catalog.training import LOSSES, METRICS, OPTIMIZERS, SCHEDULES
from lthfunc.errors import UserError
from lthfunc.experiments import recipes
from lthfunc.experiments.objective import loss_of_name, make_optimizer, metric_of_name, schedule_of
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
@pytest.mark.parametrize("engine", ["eager", "compile"])
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
    assert "--compact: cannot be with --optimizer muon" in capsys.readouterr().err


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
    with pytest.raises(UserError, match=r"rise: invalid value 2 \(expected a number from 0 to 1"):
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


def test_losses_by_hand() -> None:
    logits, y = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 2])
    logs = logits - logits.exp().sum(1, keepdim=True).log()
    torch.testing.assert_close(lf.cross_entropy(logits, y), -(logs[0, 0] + logs[1, 2]) / 2)
    spread = -(0.7 * (logs[0, 0] + logs[1, 2]) + 0.3 * logs.mean(1).sum()) / 2
    torch.testing.assert_close(lf.label_smoothed_cross_entropy(0.3)(logits, y), spread)
    # For every token: as if all stood in one row.
    tokens, targets = torch.randn(3, 5, 7), torch.randint(0, 7, (3, 5))
    for loss in (lf.cross_entropy, lf.label_smoothed_cross_entropy(0.1)):
        torch.testing.assert_close(loss(tokens, targets), loss(tokens.flatten(0, 1), targets.flatten()))
    a, b = torch.tensor([[0.0], [3.0]]), torch.tensor([[1.0], [1.0]])
    assert [float(loss(a, b)) for loss in (lf.mean_squared_error, lf.mean_absolute_error, lf.huber)] == [2.5, 1.5, 1.0]


def test_metrics_by_hand() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    y = torch.tensor([0, 1, 2, 3])
    assert [float(metric(logits, y)) for metric in (lf.accuracy, lf.top_k(2), lf.top_k(3), lf.top_k(9))] == [
        0.25,
        0.5,
        0.75,
        1,
    ]
    assert float(lf.accuracy(logits.expand(2, 4, 4), y.expand(2, 4))) == 0.25
    y = torch.randn(50, 2)
    guess = y + 0.3 * torch.randn(50, 2)
    found = lf.r2(y.var(0, correction=0))(guess, y)
    wanted = np.mean([1 - ((guess - y)[:, k] ** 2).sum() / ((y - y.mean(0))[:, k] ** 2).sum() for k in range(2)])
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def regression() -> lf.Dataset:
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, 0] * 2 - x[:, 1]
    return lf.data.from_tensors("numbers", (x[:240], y[:240]), (x[240:], y[240:]), val=60)


def test_names_of_losses_and_metrics_follow_the_targets(digits: lf.Dataset) -> None:
    numbers = regression()
    for name in LOSSES.choices:
        for data in (digits, numbers):
            config = resolved(from_mapping({"loss": name}))
            fits = name == "auto" or (name == "cross-entropy") == (data is digits)
            if fits:
                assert callable(loss_of_name(decided(config, data), data))
            else:
                with pytest.raises(UserError, match=f"--loss: invalid value '{name}'"):
                    loss_of_name(decided(config, data), data)
    for name in (*METRICS.spelled()[0], "top-3"):
        for data in (digits, numbers):
            config = resolved(from_mapping({"metric": name}))
            if name == "auto" or (name == "r2") == (data is numbers):
                assert callable(metric_of_name(decided(config, data), data))
            else:
                with pytest.raises(UserError, match=f"--metric: invalid value '{name}'"):
                    metric_of_name(decided(config, data), data)


@pytest.mark.parametrize("engine", ["eager", "compile", "sparse"])
def test_numbers_are_learnt_on_every_engine(engine: str) -> None:
    if engine != "eager" and why_no_kernels() is not None:
        pytest.skip(str(why_no_kernels()))
    data = regression()
    model = lf.from_module(nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 1)))
    metric = lf.r2(data.train.y.var(0, correction=0))
    trainer = lf.make_trainer(
        model, data, optimizer=lf.adam(1e-2), loss=lf.mean_squared_error, metric=metric, batch_size=30,
        engine=lf.sparse_engine if engine == "sparse" else engine,
    )  # fmt: skip
    found = lf.fit(trainer, lf.prune(density=0.6)(lf.init(model)), seed=0, until=400, eval_every=100)
    assert found.curve[0].val_accuracy < 0.5
    assert found.best.point.val_accuracy > 0.95
    assert lf.accuracy_on(model, found.state, data, metric=metric) > 0.9


def test_a_regression_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(400, 5))
    np.savez("d.npz", x=x, y=x @ [1.0, 2, 0, 0, -1])
    command = "prune --dataset npz:d.npz --rounds 1 --steps 200 --lr 0.003 --score snip --out run --json"
    assert main(command.split()) == 0
    rounds = json.loads(capsys.readouterr().out)["rounds"]
    assert rounds[0]["val_accuracy"]["mean"] > 0.8
    assert main([*command.split(), "--loss", "cross-entropy"]) == 2
    assert (
        main(
            [
                "prune",
                "--dataset",
                "npz:d.npz",
                "--rounds",
                "1",
                "--steps",
                "20",
                "--out",
                "again",
                "--metric",
                "accuracy",
            ]
        )
        == 2
    )
    assert "r2 or a function of your own" in capsys.readouterr().err
    assert main(["info", "run"]) == 0
    assert "val r2 %" in capsys.readouterr().out


def test_connectivity_measures_what_is_learnt() -> None:
    """Numbers, by the trainer's loss and metric: two copies of a linear fit have no barrier between them."""
    data = regression()
    model = lf.from_module(nn.Sequential(nn.Linear(6, 1)))
    metric = lf.r2(data.train.y.var(0, correction=0))
    trainer = lf.make_trainer(
        model, data, optimizer=lf.sgd(0.1), batch_size=30, loss=lf.mean_squared_error, metric=metric
    )
    (found,) = lf.instability(model, trainer, lf.init(model), [10], steps=200, seed=0, points=3)
    ends = lf.mean_squared_error(torch.zeros_like(data.test.y), data.test.y)
    assert float(found.line.loss.max()) < 0.01 * float(ends)
    assert float(found.line.error.max()) < 0.01


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_whole_and_give_way(name: str) -> None:
    def settings(**given: Any) -> Any:
        return settings_of("prune", given, name)

    plain = recipes.settings_of(name)
    config = settings(dataset="digits") if "dataset" not in plain else settings()
    for key, value in plain.items():
        found = getattr(config, key)
        assert (list(found) if isinstance(found, tuple) else found) == value
    other = settings(dataset="digits", steps=60, lr=0.5, optimizer="sgd", arch="lenet300")
    assert (other.dataset, other.steps, other.lr, other.epochs, other.milestone) == ("digits", 60, 0.5, None, ())
    with pytest.raises(UserError, match="--recipe: unknown name 'lth-lenets'; did you mean 'lth-lenet'"):
        settings_of("prune", {}, "lth-lenets")


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
        ("--label-smoothing 0.1 --loss mse", "--label-smoothing: requires --loss cross-entropy, not mse"),
        ("--metric top-0", "--metric: unknown name 'top-0'; did you mean 'top-K'?"),
        ("--loss crossentropy", "did you mean 'cross-entropy'"),
        ("--optimizer adamw --momentum 0.9", "--momentum: requires --optimizer sgd or muon, not adamw"),
        ("--optimizer json:dumps", "'json:dumps' needs obj; it is offered lr"),
        ("--optimizer operator:truth --rounds 1", "operator:truth"),
        ("--recipe none", "--recipe: unknown name 'none'"),
        ("--never-prune fc9*", "--never-prune: no parameter matches 'fc9*'"),
        ("--dataset-option size", "--dataset-option: invalid value 'size' (expected NAME=VALUE"),
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
