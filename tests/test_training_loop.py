"""Training: the same bits from the same seed, the curve, and when it diverges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DroppingNet, NormedNet
from test_training import pruned_state

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.batches import batches
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.evaluation import evaluate
from lthfunc.training.loop import fit, take_steps
from lthfunc.training.steps import on_stored
from lthfunc.training.trainer import make_trainer, measure
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset, TrainState


def trained(model: lf.Model, data: Dataset, *, seed: int = 0, until: int = 20, state: TrainState | None = None) -> Any:
    trainer = make_trainer(model, data, optimizer=lf.adam(1e-2), batch_size=40)
    return take_steps(trainer, state or lf.init(model, seed), seed=seed, until=until)[0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    assert lf.same_bits(trained(model, few_digits), trained(model, few_digits))
    assert not lf.same_bits(trained(model, few_digits).params, trained(model, few_digits, seed=1).params)


def test_training_in_two_parts_equals_training_in_one(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    middle = trained(model, few_digits, until=9)
    assert lf.same_bits(trained(model, few_digits, state=middle), trained(model, few_digits))


def test_training_does_not_change_the_state_it_starts_from(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    state = lf.init(model)
    before = ops.clone(state)
    trained(model, few_digits, state=state)
    assert lf.same_bits(state, before)


def test_random_layers_repeat_and_leave_the_global_generator_alone(few_digits: Dataset) -> None:
    model = lf.from_module(DroppingNet())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = trained(model, few_digits)
    assert torch.equal(torch.rand(3), expected)
    assert lf.same_bits(first, trained(model, few_digits))


def test_fit_chooses_the_least_validation_loss_and_records_the_curve(few_digits: Dataset) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    trainer = make_trainer(model, few_digits, optimizer=lf.adam(3e-2), batch_size=40)
    result = fit(trainer, lf.init(model), seed=0, until=50, eval_every=7)
    assert [point.step for point in result.curve] == [0, 7, 14, 21, 28, 35, 42, 49, 50]
    best = min(result.curve, key=lambda point: point.val_loss)
    assert result.best.point == best
    (again,) = measure(trainer, [result.best], few_digits.val)
    assert again == (best.val_loss, best.val_accuracy)
    assert best.step < 50, "this rate overfits before the end, so that the choice means something"
    # In two parts, through the anchor of a rewinding: the same curve, choice and state.
    part = fit(trainer, lf.init(model), seed=0, until=21, eval_every=7)
    whole = fit(trainer, part.state, seed=0, until=50, eval_every=7, so_far=part)
    assert whole.curve[1:] == result.curve[1:]
    assert lf.same_bits(whole.state, result.state)
    assert lf.same_bits(whole.best.params, result.best.params)


def test_of_equal_losses_the_earliest_step_is_chosen(few_digits: Dataset) -> None:
    """At a rate that moves no weight all points are equal, and nothing is gained by training on."""
    model = lf.models.lenet300((1, 8, 8), 10)
    trainer = make_trainer(model, few_digits, optimizer=lf.sgd(1e-30), batch_size=40)
    result = fit(trainer, lf.init(model), seed=0, until=6, eval_every=2)
    assert len({point.val_loss for point in result.curve}) == 1
    assert result.best.point.step == 0


@pytest.mark.parametrize("chunk", [1, 7, 25, 60, 500])
def test_every_example_counts_the_same_in_whatever_chunks(few_digits: Dataset, chunk: int) -> None:
    """60 examples in chunks of 7 and 25 leave a smaller last one; its examples weigh as much as the others."""
    model = lf.models.lenet300((1, 8, 8), 10)
    state = lf.init(model)
    module = lf.to_module(lf.ticket(state), model).double()
    with torch.no_grad():
        outputs = module(ops.scaled(few_digits.val.x, few_digits.scale).double())
    loss = float(F.cross_entropy(outputs, few_digits.val.y))
    hits = float((outputs.argmax(1) == few_digits.val.y).double().mean())
    step = on_stored(lf.make_eval_step(model), few_digits.scale)
    (found,) = evaluate(
        lambda batch: step(state.params, state.buffers, batch), few_digits.val, torch.device("cpu"), chunk
    )
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.accuracy == pytest.approx(hits, rel=1e-12)


def test_training_that_diverges_or_has_nothing_to_do_says_so(few_digits: Dataset) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    trainer = make_trainer(model, few_digits, optimizer=lf.sgd(1e20), batch_size=40)
    with pytest.raises(
        UserError,
        match=r"training diverged: the (gradient|loss \(\w+\)) of step \d is not finite, learning rate 1e\+20",
    ):
        fit(trainer, lf.init(model), seed=0, until=20, eval_every=10)
    once = lf.train(model, few_digits, optimizer=lf.sgd(0.1), steps=20, batch_size=40)
    with pytest.raises(UserError, match="already at step 20 of 20; rewind or fine-tune first"):
        lf.compose(once, once)(lf.init(model))


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with using_threads(3 - number):
                assert torch.get_num_threads() == 3 - number
            assert torch.get_num_threads() == number
            with using_threads(None):
                assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


def test_step_metrics_are_finite_and_training_learns_real_digits(digits: Dataset) -> None:
    model = lf.models.lenet300(digits.shape, digits.classes)
    find = lf.train(model, digits, optimizer=lf.adam(1.2e-3), steps=200)
    state = find(lf.init(model))
    assert lf.accuracy_on(model, state, digits) > 0.95
    assert math.isfinite(sum(float(leaf.sum()) for leaf in state.params.values()))


def test_training_steps_run_under_vmap_over_replicates(few_digits: Dataset) -> None:
    """Stacked states through one vmapped step equal each state's own step."""
    model = lf.from_module(NormedNet())
    optimizer = lf.adam(1e-2)
    states = [pruned_state(model, optimizer, 0.5), lf.with_optimizer(lf.init(model, 1), optimizer)]
    stacked = ops.tree_map(lambda *leaves: torch.stack(leaves), states[0], *states[1:])
    step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    batch = next(batches(few_digits.train, 40, 0, 0, 1))
    together, _ = torch.vmap(step, in_dims=(0, None))(stacked, batch)
    for i, state in enumerate(states):
        alone, _ = step(state, batch)
        for key in alone.params:
            torch.testing.assert_close(together.params[key][i], alone.params[key], rtol=1e-4, atol=1e-5)
