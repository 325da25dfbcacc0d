"""Linear mode connectivity."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.trainer import make_trainer


def test_lines_between_networks(few_digits: lf.Dataset) -> None:
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)))
    a, b = (lf.train(model, few_digits, optimizer=lf.adam(1e-2), steps=20, seed=s)(lf.init(model, s)) for s in range(2))
    found = lf.line(model, a, b, few_digits.test, few_digits.scale, points=5)
    for alpha, error in zip(found.alphas.tolist(), found.error.tolist(), strict=True):
        params = {name: (1 - alpha) * leaf + alpha * b.params[name] for name, leaf in a.params.items()}
        buffers = {
            name: (1 - alpha) * leaf + alpha * b.buffers[name] if leaf.is_floating_point() else leaf
            for name, leaf in a.buffers.items()
        }
        between = a._replace(params=params, buffers=buffers)
        assert 1 - error == pytest.approx(lf.accuracy_on(model, between, few_digits))
    assert found.barrier == pytest.approx(max(found.error.tolist()) - (found.error[0] + found.error[-1]) / 2)
    same = lf.line(model, a, a, few_digits.test, few_digits.scale, points=3)
    assert same.barrier == pytest.approx(0)


def test_copies_part_by_the_order_of_their_data_alone(few_digits: lf.Dataset) -> None:
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    trainer = make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=40)
    start = lf.init(model, 0)
    found = lf.instability(model, trainer, start, [0, 6], steps=8, seed=0, points=3)
    assert [item.k for item in found] == [0, 6]
    again = lf.instability(model, trainer, start, [6], steps=8, seed=0, points=3)
    assert torch.equal(again[0].line.loss, found[1].line.loss)
    with pytest.raises(UserError, match=r"--at: invalid value 8 \(expected a step from 0 to 7"):
        lf.instability(model, trainer, start, [8], steps=8, seed=0)
