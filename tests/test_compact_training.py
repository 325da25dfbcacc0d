"""Compacted networks train as whole ones do, on every engine."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from conftest import DroppingNet, NormedNet, with_splits
from networks_with_features import compacted
from test_compact import broken, named
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.deployment.compaction.compact import compact_training, cut, left_out
from lthfunc.deployment.compaction.compact_engine import compact_engine
from lthfunc.errors import UserError
from lthfunc.sparse.kernels import build as kernels
from lthfunc.trees.ops import map_leaves_like
from lthfunc.trees.types import Dataset, TrainState


def dead_start(model: lf.Model, density: float) -> TrainState:
    """A ticket at its initial weights with dead and unread units."""
    masks = broken(model, density, seed=1).masks
    state = lf.init(model, 0)
    return state._replace(masks=masks, params=lf.apply_masks(state.params, masks))


OPTIMIZERS = {
    "adam": lf.adam(1e-3),
    "adam, decay": lf.adam(1e-3, weight_decay=1e-2),
    "adamw, warm-up": lf.adamw(lf.warmup(lf.constant(1e-3), 5), weight_decay=1e-1),
    "momentum, decay": lf.sgd(0.02, momentum=0.9, weight_decay=1e-2),
    "a chain": lf.chain(
        *(lf.accumulate(2), lf.sam(0.05), lf.clip_by_global_norm(0.5)),
        lf.adamw(1e-3, weight_decay=0.1, decays=lf.is_matrix),
        *(lf.lookahead(4), lf.ema(0.9)),
    ),
    "nesterov, cosine": lf.sgd(lf.cosine(0.02, 40), momentum=0.9, nesterov=True, weight_decay=1e-3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_compact_is_training_whole(few_digits: Dataset, optimizer: str) -> None:
    """In float64 to 1e-9 after 40 steps in two parts, params, moments, buffers and all, BatchNorm included."""
    for model in (lf.models.lenet300((1, 8, 8)), lf.from_module(NormedNet())):
        start = dead_start(model, 0.1)
        params, buffers = (
            {k: v.double() if v.is_floating_point() else v for k, v in tree.items()} for tree in start[:2]
        )
        start = start._replace(params=params, buffers=buffers)
        data = with_splits(few_digits, lambda split: split._replace(x=split.x.double()))
        found = []
        for engine in ("eager", compact_engine("eager")):
            trainer = lf.make_trainer(model, data, optimizer=OPTIMIZERS[optimizer], batch_size=20, engine=engine)
            state, _ = lf.take_steps(trainer, start, seed=0, until=15)
            found.append(lf.take_steps(trainer, state, seed=0, until=40))
        (whole, loss), (expanded, small_loss) = found
        assert small_loss == pytest.approx(loss, abs=1e-9)
        assert int(expanded.step) == 40
        kept = compact_training(model, start, (1, 8, 8)).cuts
        for name, leaf in whole.params.items():
            torch.testing.assert_close(expanded.params[name], leaf, rtol=0, atol=1e-9)
        for name, leaf in cut(whole.buffers, kept).items():
            torch.testing.assert_close(cut(expanded.buffers, kept)[name], leaf, rtol=0, atol=1e-9)
        # Statistics of removed channels are nobody's, nor are their averages.
        moments = [
            optree.tree_leaves(map_leaves_like(state.buffers, state.opt, lambda tree, kept=kept: cut(tree, kept)))
            for state in (expanded, whole)
        ]
        for mine, theirs in zip(*moments, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


class Added(nn.Module):
    """A rectified value of which the next layer reads more than what the ReLU lets through."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.layer, self.out = nn.Linear(64, 12), nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.before(x.flatten(1)))
        found: Tensor = self.out(x + torch.relu(x))
        return found


class Twice(Added):
    """The biases of a layer that is called twice, once rectified and once not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.before(x.flatten(1)))
        found: Tensor = self.out(self.layer(torch.relu(x)))
        return found


@pytest.mark.parametrize("module", [Added, Twice])
def test_a_bias_below_zero_comes_back_where_something_else_trains_it(
    module: type[nn.Module], few_digits: Dataset
) -> None:
    model = lf.from_module(module())
    start = lf.init(model)
    masks = {name: torch.ones_like(mask) for name, mask in start.masks.items()}
    masks["layer.weight"][:8] = False
    params = {**lf.apply_masks(start.params, masks), "layer.bias": torch.full((12,), -1e-3)}
    start = start._replace(params=params, masks=masks)
    whole, small = (
        lf.take_steps(
            lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=20, engine=engine),
            start, seed=0, until=10,
        )[0].params
        for engine in ("eager", compact_engine("eager"))
    )  # fmt: skip
    assert (whole["layer.bias"][:8] > 0).any()
    for name, leaf in whole.items():
        torch.testing.assert_close(small[name], leaf, rtol=1e-4, atol=1e-5)


def test_something_is_left_out_and_moves(few_digits: Dataset) -> None:
    """The test above would pass on networks of which nothing can go."""
    model = lf.models.lenet300((1, 8, 8))
    start = dead_start(model, 0.1)
    small = compacted(model, start, (1, 8, 8), training=True)
    assert small.params["fc1.weight"].shape[0] < 300
    positions = left_out(small, start.params, start.masks)
    assert sum(map(len, positions.values())) > 100
    trainer = lf.make_trainer(
        model, few_digits, optimizer=lf.sgd(0.1, weight_decay=0.1), batch_size=20, engine=compact_engine("eager")
    )
    after, _ = lf.take_steps(trainer, start, seed=0, until=3)
    before = start.params["fc1.weight"].flatten()[positions["fc1.weight"]]
    torch.testing.assert_close(after.params["fc1.weight"].flatten()[positions["fc1.weight"]], before * 0.99**3)


@pytest.mark.parametrize("engine", [pytest.param("compile", marks=pytest.mark.long), "sparse"])
def test_every_engine_trains_compact(few_digits: Dataset, engine: str) -> None:
    if kernels.why_no_kernels() is not None:
        pytest.skip(str(kernels.why_no_kernels()))
    model = lf.models.lenet300((1, 8, 8))
    start = dead_start(model, 0.1)
    making: Any = lf.sparse_engine if engine == "sparse" else engine
    states = []
    for chosen in ("eager", compact_engine(making, selecting=engine != "sparse")):
        trainer = lf.make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=20, engine=chosen)
        states.append(lf.take_steps(trainer, start, seed=0, until=20)[0])
    for name, leaf in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], leaf, rtol=0, atol=1e-5)
        assert torch.equal(states[1].params[name] * start.masks.get(name, 1), states[1].params[name])


@pytest.mark.skipif(kernels.why_no_kernels() is not None, reason=str(kernels.why_no_kernels()))
def test_residual_networks_train_compact_on_lists(few_digits: Dataset) -> None:
    """Their streams keep all channels, so that both sides of an addition have the same ones."""
    model = lf.models.resnet20((1, 8, 8))
    start = dead_start(model, 0.1)
    small = compact_training(model, start, (1, 8, 8), selecting=False)
    assert small.params["blocks.0.conv1.weight"].numel() < start.params["blocks.0.conv1.weight"].numel()
    found = []
    for engine in (lf.sparse_engine, compact_engine(lf.sparse_engine, selecting=False)):
        trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(1e-3), batch_size=40, engine=engine)
        found.append(lf.take_steps(trainer, start, seed=0, until=4))
    (whole, loss), (expanded, small_loss) = found
    assert small_loss == pytest.approx(loss, rel=1e-4)
    for name, leaf in whole.params.items():
        torch.testing.assert_close(expanded.params[name], leaf, rtol=1e-2, atol=1e-3)


def test_dropout_is_refused(few_digits: Dataset) -> None:
    model = lf.from_module(DroppingNet())
    with pytest.raises(UserError, match="dropout draws for every unit"):
        compact_training(model, lf.init(model), (1, 8, 8))


def test_put_back_is_the_inverse_of_cutting() -> None:
    model, shape = named("block")
    ticket = broken(model, 0.1, 5)
    small = lf.compact(model, ticket, shape)
    mine = {name: leaf for name, leaf in small.params.items() if name in small.cuts}
    again = lf.put_back(ticket.params, {name: leaf + 1 for name, leaf in mine.items()}, small.cuts)
    for name, leaf in mine.items():
        assert torch.equal(cut(again, small.cuts)[name], leaf + 1)
