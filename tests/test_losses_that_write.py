"""Losses of a user's own that write into what they get: it is never their caller's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.sparse.kernels.build import why_no_kernels
from lthfunc.sparsify.gradient_scores import gradient_in_training
from lthfunc.training.engines.interface import Work
from lthfunc.training.engines.table import make_engine
from lthfunc.trees.ops import clone, same_bits
from lthfunc.trees.types import Params

ENGINES: dict[str, Any] = {"eager": "eager", "sparse": lf.sparse_engine}
NET = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


def writes(params: Params, batch: Any) -> Tensor:
    """A loss of the params that it gets; then it writes into all that it got."""
    own = {name: leaf * 1 for name, leaf in params.items()}
    value = F.cross_entropy(torch.func.functional_call(NET, own, batch[0] * 1), batch[1] * 1)
    with torch.no_grad():
        for leaf in (*params.values(), *batch):
            leaf.add_(1)
    return value


class Writes:
    """The same as an object of a user's own class."""

    def __call__(self, params: Params, batch: Any) -> Tensor:
        return writes(params, batch)


@pytest.mark.parametrize("loss", [writes, Writes()], ids=["function", "object"])
@pytest.mark.parametrize("name", ["snip", "grasp", "taylor", "fisher", "movement", "mean_gradient"])
def test_what_a_loss_of_params_writes_is_its_own(name: str, loss: Any) -> None:
    """Leaves without a mask, too, and each batch's call begins with the same params."""
    state = lf.prune(density=0.5)(lf.init(lf.from_module(NET)))
    draw = torch.Generator().manual_seed(1)
    batches = [(torch.randn(8, 5, generator=draw), torch.randint(0, 3, (8,), generator=draw)) for _ in range(2)]
    before = clone((state, batches))
    given: dict[str, Any] = {"temperature": 1.0} if name == "grasp" else {}

    def scores(which: Any) -> Params:
        found: Params = getattr(lf, name)(which, batches, **given)(state.params, state.masks)
        return found

    found = scores(loss)
    assert same_bits(clone((state, batches)), before)
    plain = scores(lambda params, batch: F.cross_entropy(torch.func.functional_call(NET, params, batch[0]), batch[1]))
    for key, leaf in plain.items():
        torch.testing.assert_close(found[key], leaf)


def test_a_growth_score_writes_into_nothing() -> None:
    state = lf.prune(density=0.5)(lf.init(lf.from_module(NET)))
    batch = (torch.ones(8, 5), torch.ones(8, dtype=torch.int64))
    before = clone((state, batch))
    found = gradient_in_training(writes, batch)(state.params, state.masks)
    assert same_bits(clone((state, batch)), before)
    assert same_bits(found, lf.mean_gradient(writes, [batch])(state.params, state.masks))


@pytest.mark.parametrize("given", ["params", "targets"])
def test_a_loss_that_writes_is_refused_before_it_has_written(given: str) -> None:
    def loss(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
        with torch.no_grad():
            (context.params["0.bias"] if given == "params" else targets).zero_()
        return F.cross_entropy(outputs, targets)

    model = lf.from_module(NET)
    state, batch = lf.init(model), (torch.ones(8, 5), torch.ones(8, dtype=torch.int64))
    state.params["0.bias"].fill_(1)
    before = clone((state, batch))
    with pytest.raises(UserError, match=r"^loss: 'loss' changes its arguments in place"):
        lf.snip(lf.loss_of(model, {}, loss), [batch])(state.params, state.masks)
    assert same_bits(clone((state, batch)), before)


def test_what_a_metric_or_loss_of_an_evaluation_writes_is_its_own() -> None:
    """It is refused, and neither params nor batch have changed."""

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        targets.zero_()
        return (outputs.argmax(1) == targets).double().mean()

    def through_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.zero_().sum()

    def with_inputs(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
        context.inputs.zero_()
        return outputs.sum()

    def with_params(outputs: Tensor, targets: Tensor, context: lf.LossContext) -> Tensor:
        context.params["0.weight"].zero_()
        return outputs.sum()

    cases: list[tuple[nn.Module, dict[str, Any]]] = [
        (NET, {"metric": metric}), (NET, {"loss": metric}), (NET, {"loss": with_inputs}), (NET, {"loss": with_params}),
        (Itself(), {"metric": through_outputs}), (Itself(), {"loss": through_outputs}),
    ]  # fmt: skip
    for net, how in cases:
        model = lf.from_module(net)
        state, batch = lf.init(model), (torch.ones(8, 5), torch.ones(8, dtype=torch.int64))
        before = clone((state, batch))
        ((kind, function),) = how.items()
        with pytest.raises(UserError, match=f"^{kind}: '{function.__name__}' changes its arguments in place"):
            lf.make_eval_step(model, **how)(state.params, state.buffers, batch)
        assert same_bits(clone((state, batch)), before), how


class Itself(nn.Module):
    """Gives its inputs, although it has a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("engine", ["eager", "sparse"])
def test_a_metric_that_writes_is_refused_by_every_engine(engine: str) -> None:
    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets.zero_()).double().mean()

    if engine == "sparse" and (reason := why_no_kernels()) is not None:
        pytest.skip(reason)
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=draw), torch.randint(0, 3, (60,), generator=draw)
    data = lf.data.from_tensors("own", (x[:40], y[:40]), (x[40:], y[40:]), val=10)
    before = clone((data.train, data.val, data.test))
    model = lf.from_module(NET)
    work = Work(model, lf.cross_entropy, lf.sgd(0.1), None, None, "fp32", metric)
    with pytest.raises(UserError, match=r"^metric: 'metric' changes its arguments in place; return new tensors"):
        make_engine(ENGINES[engine], work).measure([lf.init(model)], data.val)
    assert same_bits(clone((data.train, data.val, data.test)), before)
