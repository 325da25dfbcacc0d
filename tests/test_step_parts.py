"""What a training step is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small import NET, data, state_of
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.distributed.collectives import Collectives
from lthfunc.errors import UserError
from lthfunc.training.chain import masked
from lthfunc.training.loss_of_params import LossOf, forward_of
from lthfunc.training.losses import cross_entropy
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.steps import (
    Carry,
    boolean_masks,
    floating_masks,
    make_loop_body,
    make_train_step,
    on_stored,
)
from lthfunc.trees.rng import counter_key, fold_in
from lthfunc.trees.types import Scale


def test_a_loss_knows_temperatures_and_running_statistics() -> None:
    model, state = state_of()
    batch = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    loss = lf.loss_of(model, state.buffers)
    outputs = torch.func.functional_call(NET, state.params, (batch[0],))
    for temperature in (1.0, 4.0):
        found = loss.at_temperature(temperature)(state.params, batch)
        torch.testing.assert_close(found, nn.functional.cross_entropy(outputs / temperature, batch[1]))
    assert loss.by_example() is loss
    normed = lf.from_module(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)))
    _, buffers = normed.init(0)
    single: LossOf = lf.loss_of(normed, buffers).by_example()
    modes = [part.training for part in single.model.training.modules()]
    assert modes == [True, True, False, True, True]
    assert normed.training.training
    assert all(part.training for part in normed.training.modules())


def test_a_forward_pass_is_as_wide_as_its_inputs() -> None:
    model = lf.from_module(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)))
    params, buffers = model.init(0)
    wide = {name: leaf.double() for name, leaf in params.items()}
    out = forward_of(model, buffers)(wide, torch.ones(2, 6, dtype=torch.float64))
    assert out.dtype == torch.float64
    with pytest.raises(UserError, match=r"^score: synflow requires a network with real inputs, but net reads to"):
        forward_of(model._replace(tokens=5, name="net"), buffers)  # type: ignore[arg-type]


class Narrow(nn.Module):
    """Runs in float32 alone, and on its own words where it is told to."""

    def __init__(self, words: str = "") -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.words = words

    def forward(self, x: Tensor) -> Tensor:
        if self.words:
            raise UserError(self.words)
        out: Tensor = self.fc(x) @ torch.ones(3, 3)
        return out


def test_a_forward_pass_that_fails_is_told_with_its_precision() -> None:
    model = lf.from_module(Narrow())
    params, buffers = model.init(0)
    wide = {name: leaf.double() for name, leaf in params.items()}
    assert forward_of(model, buffers)(params, torch.ones(2, 6)).shape == (2, 3)
    with pytest.raises(UserError, match=r"^Narrow cannot be run in float64, as synflow does"):
        forward_of(model, buffers)(wide, torch.ones(2, 6, dtype=torch.float64))
    own = model._replace(evaluating=Narrow("my own words"))
    with pytest.raises(UserError, match=r"^my own words$"):
        forward_of(own, buffers)(params, torch.ones(2, 6))


class Wide(nn.Module):
    """A user's own in float64, with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(6).double(), nn.Linear(6, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(self.norm(x))
        return out


def test_states_may_be_of_the_inputs_precision_instead_of_the_modules() -> None:
    model = lf.from_module(Wide())
    trainer = lf.make_trainer(model, data(), optimizer=lf.sgd(0.1), batch_size=5)
    state = lf.init(model)
    narrow = state._replace(
        params={name: leaf.float() for name, leaf in state.params.items()},
        buffers={name: leaf.float() if leaf.is_floating_point() else leaf for name, leaf in state.buffers.items()},
    )
    after = lf.take_steps(trainer, narrow, seed=0, until=2)[0]
    assert all(leaf.dtype == torch.float32 for leaf in after.params.values())


class Detached(nn.Module):
    """Outputs that depend on no parameter; or targets that the loss would, if it took them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x).detach()
        return out


def test_a_loss_of_no_parameter_is_told_before_training() -> None:
    with pytest.raises(UserError, match="the outputs of Detached depend on no parameter"):
        lf.make_trainer(lf.from_module(Detached()), data(), optimizer=lf.sgd(0.1), batch_size=5)

    def constant(outputs: Tensor, targets: Tensor) -> Tensor:
        return targets.double().mean()

    def of_outputs(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean().double()

    with pytest.raises(UserError, match="depend on no parameter"):
        lf.make_trainer(
            lf.from_module(NET), data(), optimizer=lf.sgd(0.1), batch_size=5, loss=constant, metric=of_outputs
        )
    lf.make_trainer(lf.from_module(NET), data(), optimizer=lf.sgd(0.1), batch_size=5, loss=of_outputs, metric=constant)


def test_what_a_loop_adds_to_a_step() -> None:
    seen: list[Any] = []

    def step(state: Any, batch: Any, *rest: Any) -> Any:
        seen.append((batch, rest))
        return state._replace(step=state.step + 1), {"loss": torch.tensor(2.0)}

    drawn: list[Any] = []

    def augment(inputs: Tensor, key: Tensor, *place: int) -> Tensor:
        drawn.append((int(key), place))
        return inputs + 1

    _, state = state_of()
    state = state._replace(step=torch.tensor(3))
    run = counter_key(0, "step")
    carry = Carry(state, run, torch.tensor([5.0], dtype=torch.float64), torch.tensor([1]))
    stored, y, scale = torch.tensor([2, 4], dtype=torch.uint8), torch.tensor([0, 1]), Scale(2, (0.5,), (0.25,))
    scaled = (torch.tensor([1.0, 2.0]) - 0.5) / 0.25
    after = make_loop_body(step)(carry, (scaled, y))
    assert (float(after.loss), int(after.state.step)) == (7.0, 4)
    assert after.key is run
    make_loop_body(step, scale)(carry, (stored, y))
    make_loop_body(step, scale, augment)(carry, (stored, y))
    make_loop_body(step, scale, augment, Collectives(1, 2, lambda vector: vector))(carry, (stored, y))
    make_loop_body(step, scale, augment, Collectives(2, 3, lambda vector: vector))(carry, (stored, y))
    number = int(fold_in(run, torch.tensor(3)))
    assert drawn == [(number, ()), (number, (2,)), (number, (4,))]  # of two inputs on each rank
    expected = [scaled, scaled, *[scaled + 1] * 3]
    assert [len(rest) for _, rest in seen] == [0, 0, 0, 1, 1]
    for ((inputs, targets), _), wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(inputs, wanted)
        assert targets is y
    assert seen[-1][1][0] is carry.travels
    told = on_stored(lambda params, buffers, batch: {"loss": batch[0].sum(), "accuracy": batch[1]}, scale)(
        {}, {}, (stored, y)
    )
    torch.testing.assert_close(told["loss"], scaled.sum())
    assert told["accuracy"] is y


def test_masks_are_floats_in_a_loop_and_bools_outside() -> None:
    _, state = state_of()
    floats = floating_masks(state)
    for name, mask in floats.masks.items():
        assert mask.dtype == torch.float32
        assert torch.equal(mask.bool(), state.masks[name])
    assert lf.same_bits(boolean_masks(floats), state)
    grads = {name: torch.randn_like(leaf) for name, leaf in state.params.items()}
    for masks in (state.masks, floats.masks):
        found = masked(grads, masks)
        assert list(found) == list(grads)
        for name, leaf in grads.items():
            assert torch.equal(found[name], torch.where(state.masks[name], leaf, 0) if name in state.masks else leaf)


def test_a_step_after_mixing_masks_the_weights() -> None:
    model, state = state_of()
    moves = Optimizer(
        lambda params: (), lambda g, s, p, t: ({name: leaf + 1 for name, leaf in p.items()}, s), mixes=True
    )
    start = state._replace(opt=None)
    batch = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    after, metrics = make_train_step(model, cross_entropy, moves)(start, batch)
    for name, mask in state.masks.items():
        assert torch.equal(after.params[name], torch.where(mask, state.params[name] + 1, 0))
    assert int(after.step) == 1
    assert sorted(metrics) == ["accuracy", "loss"]
    assert metrics["accuracy"].dtype == torch.float64
