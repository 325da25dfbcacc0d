"""What `--engine auto` makes of losses that see more than outputs and targets."""

from __future__ import annotations

import pytest
from test_sparse_engine import ticket_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.config import Config
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.sparse.cost_model import cost_of_teachers, is_faster, relative_time
from lthfunc.sparse.kernels import build
from lthfunc.sparse.sparse_or_dense import always_sparse
from lthfunc.training.engines.interface import Work

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


def stepped(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
    return lf.cross_entropy(outputs, targets) * (1 if context.step is None else 1 + 0 * context.step)


def sparing(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
    return lf.cross_entropy(outputs, targets) + 1e-6 * context.params["fc1.weight"].abs().sum()


def test_auto_follows_what_a_loss_sees() -> None:
    for name, engine, words in (
        ("stepped", "sparse/compile", "with a loss that is Python's"),
        ("sparing", "compile", "not sparse: --engine: sparse gives a loss no context.params"),
    ):
        plan = prepare(resolved(Config(arch="lenet300", steps=3000, loss=f"test_auto_losses:{name}")))
        reasons = {each.setting: each.reason for each in plan.decisions}
        assert plan.config.engine == engine
        assert words in reasons["engine"]


def test_the_rule_adds_a_teacher_to_both_engines() -> None:
    """A network that saves little is not worth the sparse engine beside a teacher that costs more than itself."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(784, 1000), nn.Linear(1000, 10))
    loss = lf.distillation(teacher)
    products = (784 * 1000 + 1000 * 10) / 3  # forward, of a network's forward and backward
    shape, model = (1, 28, 28), lf.models.lenet300()
    assert cost_of_teachers(loss, shape) == pytest.approx(products)
    both = lf.sum_of_losses((0.5, loss), (0.5, lf.on_output(0, loss)))
    assert cost_of_teachers(both, shape) == pytest.approx(2 * products)
    assert cost_of_teachers(lf.distillation(nn.Flatten()), shape) == 0
    for density, faster in {1.0: False, 0.2: True}.items():
        masks = ticket_of(model, density).masks
        work = Work(model, loss, lf.adam(1e-3), None, None, "fp32")
        assert is_faster(model, shape, masks)
        assert is_faster(model, shape, masks, cost_of_teachers(loss, shape)) is faster
        assert always_sparse("sparse/eager", work, shape) is False
    kept = dict.fromkeys(model.prunable, 0.2)
    alone, beside = (relative_time("sparse", model, shape, kept, each) for each in (0.0, 1e9))
    assert alone < 0.4 < 0.99 < beside < 1
