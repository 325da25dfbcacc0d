"""Losses and metrics by hand and by name, and regressions from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lthfunc_cli.main import main
from small import decided
from torch import nn

import lthfunc as lf
from lthfunc.catalog.training import LOSSES, METRICS
from lthfunc.errors import UserError
from lthfunc.experiments.objective import loss_of_name, metric_of_name
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.schema import from_mapping
from lthfunc.sparse.kernels.build import why_no_kernels


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
            fits = name == "auto" or LOSSES[name].of == ("classes" if data is digits else "numbers")
            if fits:
                assert callable(loss_of_name(decided(config, data), data))
            else:
                with pytest.raises(UserError, match=f"--loss: invalid value '{name}'"):
                    loss_of_name(decided(config, data), data)
    for name in (*METRICS.spelled()[0], "top-3"):
        for data in (digits, numbers):
            config = resolved(from_mapping({"metric": name}))
            of = "classes" if name == "top-3" or name == "auto" else METRICS[name].of
            if name == "auto" or of == ("classes" if data is digits else "numbers"):
                assert callable(metric_of_name(decided(config, data), data))
            else:
                with pytest.raises(UserError, match=f"--metric: invalid value '{name}'"):
                    metric_of_name(decided(config, data), data)


@pytest.mark.parametrize("engine", ["eager", pytest.param("compile", marks=pytest.mark.long), "sparse"])
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
