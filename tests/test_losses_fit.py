"""Losses and metrics are held to the targets they are for: nothing is broadcast, or 0, in silence."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lthfunc as lf
from lthfunc.errors import UserError

X = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
NUMBERS, CLASSES = X.sum(1), torch.arange(120) % 4


def data_of(y: torch.Tensor) -> lf.Dataset:
    return lf.data.from_tensors("mine", (X, y), (X, y), val=9)


class Squeezed(torch.nn.Module):
    """Gives (n,), where targets are (n, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x).squeeze(-1)
        return out


@pytest.mark.parametrize("engine", ["eager", "compile"])
@pytest.mark.parametrize(
    ("module", "y", "loss", "words"),
    [
        (torch.nn.Linear(5, 1), NUMBERS, lf.cross_entropy, "loss: cross_entropy requires classes, but the targets"),
        (torch.nn.Linear(5, 3), NUMBERS, lf.cross_entropy, r"float32 of shape \(\d+, 1\); use lf\.mean"),
        (torch.nn.Linear(5, 1), NUMBERS, lf.label_smoothed_cross_entropy(0.1), "loss: label_smoothed"),
        (torch.nn.Linear(5, 1), CLASSES, lf.mean_squared_error, r"_error: .* float32 of shape \(\d+, 1\), targets int"),
        (torch.nn.Linear(5, 2), NUMBERS, lf.mean_absolute_error, r"_error: .* of shape \(\d+, 2\), targets float32"),
        (Squeezed(), NUMBERS, lf.mean_squared_error, r"outputs are float32 of shape \(\d+,\), targets float32 of"),
        (Squeezed(), NUMBERS, lf.huber, r"huber: outputs and targets must have the same shape; outputs are"),
    ],
)  # fmt: skip
def test_a_loss_of_other_targets_is_refused(
    module: Any, y: torch.Tensor, loss: lf.Loss, words: str, engine: Any
) -> None:
    model = lf.from_module(module)

    def trained() -> lf.TrainState:
        train = lf.train(model, data_of(y), optimizer=lf.sgd(0.1), steps=2, loss=loss, engine=engine)
        return train(lf.init(model))

    with pytest.raises(UserError, match=words):
        trained()


def test_accuracy_is_not_a_number_where_targets_are_numbers() -> None:
    model, data = lf.from_module(torch.nn.Linear(5, 1)), data_of(NUMBERS)
    state = lf.train(model, data, optimizer=lf.sgd(0.1), steps=20, loss=lf.mean_squared_error)(lf.init(model))
    with pytest.raises(UserError, match=r"metric: accuracy requires classes, but the targets are numbers; try lf"):
        lf.accuracy_on(model, state, data)
    assert lf.accuracy(torch.zeros(7, 1), torch.zeros(7, 1)).isnan()
    metric = lf.r2(data.train.y.var(0, correction=0))
    predicted = data.test.x @ state.params["weight"].T + state.params["bias"]
    wanted = 1 - (predicted - data.test.y).square().mean() / data.train.y.var(0, correction=0)
    assert lf.accuracy_on(model, state, data, metric=metric) == pytest.approx(float(wanted), abs=1e-5)
    with pytest.raises(UserError, match="r2: outputs and targets must have the same shape"):
        metric(torch.zeros(7), torch.zeros(7, 1))


def test_shares_of_classes_are_targets_of_cross_entropy() -> None:
    outputs, shares = torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), torch.eye(3).repeat(2, 1)
    assert torch.equal(lf.cross_entropy(outputs, shares), torch.nn.functional.cross_entropy(outputs, shares))
