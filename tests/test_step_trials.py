"""A step is tried before training, and what is not finite is told."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import data, state_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import DivergedError, UserError
from lthfunc.training.engines.interface import Work
from lthfunc.training.finiteness import are_finite
from lthfunc.training.losses import accuracy, cross_entropy
from lthfunc.training.nonfinite import _error
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.results import SinceLastPoint
from lthfunc.training.state_checks import check_pruned_zero
from lthfunc.training.step_check import check_step
from lthfunc.training.trainer import checked_quality
from lthfunc.trees.side_effects import SideEffects
from lthfunc.trees.types import Split

SEEN: list[int] = []


class Counting(nn.Module):
    """Tells how many examples it was given each time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(len(x))
        out: Tensor = self.fc(x)
        return out


def test_a_step_is_tried_on_eight_examples() -> None:
    def tried(batch_size: int, numbers: Any) -> list[int]:
        work = Work(lf.from_module(Counting()), cross_entropy, lf.sgd(0.1), None, None, "fp32")
        SEEN.clear()
        check_step(work, numbers, batch_size)
        return SEEN

    numbers = data()
    assert set(tried(50, numbers)) == {8}
    assert set(tried(5, numbers)) == {5}
    few = numbers._replace(train=Split(numbers.train.x[:3], numbers.train.y[:3]))
    assert set(tried(50, few)) == {3}


def test_numbers_are_finite_or_not_by_state() -> None:
    _, state = state_of()
    fine, since = lf.with_optimizer(state, lf.adam(0.1)), SinceLastPoint(1.0, 1, torch.empty(0))
    opt = fine.opt._replace(variance={**fine.opt.variance, "1.bias": torch.full((5,), math.nan)})
    worse = [
        fine._replace(params={**fine.params, "3.bias": torch.tensor([0.0, math.inf, 0.0])}),
        fine._replace(params={**fine.params, "3.bias": torch.tensor([math.nan, 0.0, 0.0])}),
        fine._replace(buffers={"mean": torch.tensor(-math.inf), "count": torch.tensor(3)}),
        fine._replace(opt=opt),
    ]
    assert are_finite([fine, *worse, fine], [since] * 6) == [True, False, False, False, False, True]
    assert are_finite([fine] * 3, [since._replace(loss=loss) for loss in (math.nan, math.inf, 5.0)]) == [
        False,
        False,
        True,
    ]


def test_pruned_weights_that_move_are_told_by_layer() -> None:
    _, state = state_of()
    strange: Any = SimpleNamespace(side_effects=SideEffects(known=False), optimizer=lf.sgd(0.1))
    ours: Any = SimpleNamespace(side_effects=SideEffects(known=True), optimizer=lf.sgd(0.1))
    own: Any = SimpleNamespace(
        side_effects=SideEffects(known=True), optimizer=Optimizer(lambda p: (), lambda *given: given)
    )
    for trainer in (strange, ours, own):
        check_pruned_zero([state], trainer)
        check_pruned_zero([state._replace(masks={})], trainer)
    pruned = ~state.masks["3.weight"]
    for value in (1.0, -1e-30):
        moved = state._replace(
            params={**state.params, "3.weight": torch.where(pruned, value, state.params["3.weight"])}
        )
        check_pruned_zero([moved], ours)
        for trainer in (strange, own):
            with pytest.raises(UserError, match=r"^3\.weight: pruned weights are no longer zero"):
                check_pruned_zero([state, moved], trainer)
    for value in (math.nan, math.inf, -math.inf):
        lost = state._replace(params={**state.params, "3.weight": torch.full((3, 5), value)})
        check_pruned_zero([lost], strange)  # that is another matter


def test_where_a_training_diverged() -> None:
    _, state = state_of()
    state = lf.with_optimizer(state._replace(step=torch.tensor(4)), lf.sgd(lf.cosine(0.5, 8)))
    before, after = SinceLastPoint(2.0, 3, torch.empty(0)), SinceLastPoint(5.0, 4, torch.empty(0))
    error = _error(state, before, after, [7], 0)
    assert isinstance(error, DivergedError)
    assert str(error).startswith("training diverged: the gradient of step 5 is not finite, learning rate 0.25; a smal")
    error = _error(state, before, after._replace(loss=math.inf), [7, 9], 1)
    assert str(error).startswith("seed 9: training diverged: the loss (inf) of step 5 is not finite")
    error = _error(state._replace(opt=()), before, after._replace(loss=math.nan), [7], 0)
    assert str(error).startswith("training diverged: the loss (nan) of step 5 is not finite; a smaller lr may help")


def test_a_metric_of_ones_own_is_a_number() -> None:
    class Quality(SimpleNamespace):
        pass

    def mine(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    good, none, lost = (
        SimpleNamespace(loss=a, accuracy=b) for a, b in ((1.0, 0.5), (1.0, math.nan), (math.nan, math.nan))
    )
    for found in ([good], [good, lost], [lost]):
        assert checked_quality(found, mine) is found  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^metric: 'mine' returned NaN"):
        checked_quality([good, none], mine)  # type: ignore[list-item]
    assert checked_quality([none], accuracy) == [none]  # type: ignore[list-item]
