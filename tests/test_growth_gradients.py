"""The machine's gradients of pruned weights, by which RigL grows: against float64, and where PyTorch takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_exchanges import MODEL, STEADY, images, ticket, updates_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.methods import during_training
from lthfunc.experiments.methods.during_training import exchanges
from lthfunc.sparse.capture import captured
from lthfunc.sparse.growth_gradients import GrowthGradients
from lthfunc.sparse.kernels import build
from lthfunc.sparse.program import Epilogue, Stored, program_of
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.results import GradientGrowth
from lthfunc.trees.model import apply_training
from lthfunc.trees.ops import scaled
from lthfunc.trees.rng import key

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

STORED = Stored((2, 6, 6), torch.float32)


def a_trainer(model: lf.Model = STEADY, **given: Any) -> lf.Trainer:
    return lf.make_trainer(model, images(), optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine, **given)


def workspace_of(state: lf.TrainState, model: lf.Model = STEADY, stored: Stored = STORED) -> Workspace:
    graph = captured(model, stored.shape, training=True)
    program = program_of(graph, *state[:3], batch=8, stored=stored, epilogue=Epilogue())
    return Workspace(program, state.params, state.buffers)


def batch_of(examples: int) -> tuple[Tensor, Tensor]:
    x, y = images().train
    return x[:examples], y[:examples]


@pytest.mark.parametrize("examples", [1, 8, 40])
def test_gradients_of_pruned_weights_are_those_of_float64(examples: int) -> None:
    state, (x, y) = ticket(0, STEADY), batch_of(examples)
    taker = GrowthGradients(a_trainer().work)
    found = taker.magnitudes(workspace_of(state), state.masks, (x, y), STORED, (0, 0))
    wide = {name: leaf.double().requires_grad_() for name, leaf in state.params.items()}
    buffers = {name: leaf.double() if leaf.is_floating_point() else leaf for name, leaf in state.buffers.items()}
    F.cross_entropy(apply_training(STEADY, wide, buffers, x.double())[0], y).backward()
    assert found is not None
    assert found.keys() == state.masks.keys()
    for name, leaf in found.items():
        gradient = wide[name].grad
        assert gradient is not None
        torch.testing.assert_close(leaf.double(), gradient.abs(), rtol=2e-4, atol=2e-6)
        assert (leaf[~state.masks[name]] > 0).any() or examples == 1
    # A second network and its masks on the same program, and more threads: the same bits as on a new one.
    other = ticket(1, STEADY)
    with using_threads(2):
        again = taker.magnitudes(workspace_of(other), other.masks, (x, y), STORED, (0, 0))
    fresh = GrowthGradients(a_trainer().work).magnitudes(workspace_of(other), other.masks, (x, y), STORED, (0, 0))
    assert lf.same_bits(again, fresh)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weights_grow_where_the_machines_gradients_are_largest(
    smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One update by hand: the same batch, drop and choice as in the training. A loss may be Python's."""
    given: dict[str, Any] = {"loss": lf.label_smoothed_cross_entropy(smoothing)} if smoothing else {}
    trainer, start, step, share = a_trainer(**given), ticket(0, STEADY), 3, 0.4
    monkeypatch.setattr(during_training, "growth_scores", lambda *given: pytest.fail("PyTorch took the gradients"))
    before = lf.take_steps(trainer, start, seed=0, until=step)[0]
    ((x, y),) = lf.sample_batches(images(), 8, 1, key(0, "growth", step))
    wide = {name: leaf.clone().requires_grad_() for name, leaf in before.params.items()}
    outputs = apply_training(STEADY, wide, before.buffers, x)[0]
    F.cross_entropy(outputs, y, label_smoothing=smoothing).backward()
    expected = {}
    for name, mask in before.masks.items():
        gradient = wide[name].grad
        assert gradient is not None
        count = round(share * int(mask.sum()))
        worth = torch.where(mask, before.params[name].abs(), torch.inf).flatten()
        stays = mask.flatten().index_fill(0, worth.argsort(stable=True)[:count], False)
        hope = gradient.abs().flatten().masked_fill(stays, -1)
        expected[name] = stays.index_fill(0, hope.argsort(descending=True, stable=True)[:count], True).view(mask.shape)
    updates = exchanges(trainer, (step,), growth_of("gradient"), lambda step: share)
    found = lf.fit(trainer, start, seed=0, until=step + 1, eval_every=step + 1, updates=updates)
    assert lf.same_bits(found.state.masks, expected)


def test_random_layers_draw_by_seed_and_step() -> None:
    state = ticket(0, MODEL)
    taker, network = GrowthGradients(a_trainer(MODEL).work), workspace_of(state, MODEL)

    def taken(step: int, seed: int) -> Any:
        return taker.magnitudes(network, state.masks, batch_of(8), STORED, (step, seed))

    assert lf.same_bits(taken(5, 0), taken(5, 0))
    assert not lf.same_bits(taken(5, 0), taken(6, 0))
    assert not lf.same_bits(taken(5, 0), taken(5, 1))


def test_other_losses_and_gradients_that_are_nan_are_left_to_pytorch() -> None:
    state = ticket(0, STEADY)
    other, network = a_trainer(loss=lf.label_smoothed_cross_entropy(0.1)).work, workspace_of(state)
    assert GrowthGradients(other).magnitudes(network, state.masks, batch_of(8), STORED, (0, 0)) is None
    bad = batch_of(8)[0] * torch.inf, batch_of(8)[1]
    assert GrowthGradients(a_trainer().work).magnitudes(network, state.masks, bad, STORED, (0, 0)) is None


def test_an_update_names_the_batch_as_it_is_stored() -> None:
    data, model = lf.data.load("digits"), lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    trainer = lf.make_trainer(model, data, optimizer=lf.adam(0.01), batch_size=8, engine=lf.sparse_engine)
    exchange, state = updates_of(trainer, "gradient").exchange, lf.init(model)
    assert exchange is not None
    growth, _ = exchange(lambda: state, UpdateContext(4, 5, False))
    assert isinstance(growth, GradientGrowth)
    x, y = growth.batch()
    ((inputs, targets),) = lf.sample_batches(data, 8, 1, key(4, "growth", 5))
    assert torch.equal(scaled(x, data.scale), inputs)
    assert torch.equal(y, targets)
    stored = Stored(tuple(x.shape[1:]), x.dtype, data.scale)
    network = workspace_of(state, model, stored)
    taken = GrowthGradients(trainer.work).magnitudes(network, ["1.weight"], (x, y), stored, (0, 0))
    assert taken is not None
    torch.testing.assert_close(taken["1.weight"], growth.scores()["1.weight"], rtol=1e-4, atol=1e-6)
