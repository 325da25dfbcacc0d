"""Optimisers against torch.optim, steps against autograd, and the loop's purity and repeatability."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import DroppingNet, NormedNet
from torch import nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.training.batches import batches, steps_per_epoch
from lthfunc.training.cpu_threads import using_threads
from lthfunc.training.evaluation import evaluate
from lthfunc.training.loop import fit, take_steps
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.schedules import rate_at
from lthfunc.training.steps import on_stored
from lthfunc.training.trainer import make_trainer, measure
from lthfunc.trees import ops
from lthfunc.trees.types import Dataset, Split, TrainState

TorchOptimizer = Callable[[list[torch.Tensor]], torch.optim.Optimizer]

PAIRS: dict[str, tuple[Optimizer, TorchOptimizer]] = {
    "sgd": (lf.sgd(0.05), lambda p: torch.optim.SGD(p, 0.05)),
    "sgd with decay": (lf.sgd(0.05, weight_decay=0.01), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.01)),
    "momentum": (
        lf.sgd(0.05, momentum=0.9, weight_decay=5e-4),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=5e-4),
    ),
    "nesterov": (
        lf.sgd(0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    ),
    "adam": (lf.adam(1.2e-3), lambda p: torch.optim.Adam(p, 1.2e-3)),
    "adam with decay": (lf.adam(1e-2, weight_decay=0.1), lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1)),
    "adamw": (lf.adamw(1e-2), lambda p: torch.optim.AdamW(p, 1e-2)),
    "adamw, other betas": (
        lf.adamw(1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
        lambda p: torch.optim.AdamW(p, 1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_optimisers_equal_torchs_over_a_hundred_steps(name: str) -> None:
    """In float64, where rounding cannot hide a wrong formula, and with the gradient of a real, curved loss."""
    ours, theirs = PAIRS[name]
    generator = torch.Generator().manual_seed(0)
    params = {
        "w": torch.randn(7, 5, generator=generator, dtype=torch.float64),
        "b": torch.randn(7, generator=generator, dtype=torch.float64),
    }
    copies = {key: value.clone().requires_grad_() for key, value in params.items()}
    optimizer = theirs(list(copies.values()))
    state = ours.init(params)
    for step in range(100):
        x = torch.randn(4, 5, generator=generator, dtype=torch.float64)

        def loss(tree: Any, x: torch.Tensor = x) -> torch.Tensor:
            return torch.tanh(x @ tree["w"].T + tree["b"]).square().mean()

        params, state = ours.update(torch.func.grad(loss)(params), state, params, torch.tensor(step))
        optimizer.zero_grad()
        loss(copies).backward()
        optimizer.step()
        for key in params:
            torch.testing.assert_close(params[key], copies[key].detach(), rtol=1e-10, atol=1e-12)


def test_schedules_equal_torchs() -> None:
    parameter = nn.Parameter(torch.zeros(1))

    def rates(make: Callable[[torch.optim.Optimizer], Any], steps: int) -> list[float]:
        optimizer = torch.optim.SGD([parameter], 0.4)
        schedule = make(optimizer)
        out = []
        for _ in range(steps):
            out.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return out

    ours = [float(rate_at(lf.stepwise(0.4, (3, 6)), torch.tensor(i))) for i in range(10)]
    theirs = rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 6]), 10)
    assert ours == pytest.approx(theirs, rel=1e-12)
    ours = [float(rate_at(lf.cosine(0.4, 20), torch.tensor(i))) for i in range(20)]
    theirs = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20), 20)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert lf.warmup(lf.constant(0.4), 4).tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert float(rate_at(lf.warmup(lf.constant(0.4), 4), torch.tensor(99))) == 0.4


def test_out_of_range_settings_are_refused() -> None:
    for make in (
        lambda: lf.sgd(0.0),
        lambda: lf.sgd(0.1, momentum=1.0),
        lambda: lf.sgd(0.1, nesterov=True),
        lambda: lf.adam(1e-3, betas=(1.0, 0.9)),
        lambda: lf.adamw(1e-3, weight_decay=-1),
        lambda: lf.cosine(0.1, 0),
        lambda: lf.warmup(lf.constant(0.1), -1),
        lambda: lf.constant(0.0),
        lambda: lf.stepwise(0.0, [3]),
        lambda: lf.cosine(0.0, 10),
        lambda: lf.cyclic(0.0, 10, 2),
        lambda: lf.one_cycle(0.0, 10),
        lambda: lf.triangular(0.0, 10),
        lambda: lf.trapezoidal(0.0, 10),
    ):
        with pytest.raises(UserError, match=r": invalid value .* \(expected "):
            make()


def pruned_state(model: lf.Model, optimizer: Optimizer, fraction: float = 0.8) -> TrainState:
    return lf.with_optimizer(lf.prune(fraction=fraction)(lf.init(model, 0)), optimizer)


@pytest.mark.parametrize("name", PAIRS)
def test_pruned_weights_are_exactly_zero_after_every_step(name: str, few_digits: Dataset) -> None:
    """Weight decay and momentum included; a mutant that masks after weight decay or not at all fails this."""
    optimizer = PAIRS[name][0]
    model = lf.models.lenet300((1, 8, 8), 10)
    step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    state = pruned_state(model, optimizer)
    start = state
    for batch in batches(few_digits.train, 60, 0, 0, 12):
        state, _ = step(state, batch)
        for key, mask in state.masks.items():
            assert not state.params[key][~mask].any()
            assert lf.same_bits(mask, start.masks[key])
    moved = (state.params["fc1.weight"] != start.params["fc1.weight"])[state.masks["fc1.weight"]]
    assert moved.float().mean() > 0.5, "live weights must train"


def test_a_step_equals_plain_pytorch_on_the_same_module(few_digits: Dataset) -> None:
    """Values, BatchNorm statistics and metrics, against an ordinary training loop."""
    module = NormedNet()
    model = lf.from_module(module, init=lf.as_built)
    step = lf.make_train_step(model, lf.cross_entropy, lf.sgd(0.1, momentum=0.9))
    state = lf.with_optimizer(lf.init(model), lf.sgd(0.1, momentum=0.9))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9)
    for x, y in batches(few_digits.train, 40, 0, 0, 6):
        state, metrics = step(state, (x, y))
        out = module(x)
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(metrics["loss"], loss.detach())
        torch.testing.assert_close(metrics["accuracy"], (out.argmax(1) == y).double().mean())
    for key, value in module.state_dict().items():
        torch.testing.assert_close({**state.params, **state.buffers}[key], value, rtol=1e-4, atol=1e-5)
    assert int(state.buffers["norm.num_batches_tracked"]) == 6
    assert int(state.step) == 6


def test_steps_and_evaluations_change_no_argument(few_digits: Dataset) -> None:
    model = lf.from_module(NormedNet())
    optimizer = lf.adam(1e-2)
    state = pruned_state(model, optimizer, 0.5)
    before = ops.clone(state)
    batch = next(batches(few_digits.train, 60, 0, 0, 1))
    new, _ = lf.make_train_step(model, lf.cross_entropy, optimizer)(state, batch)
    lf.make_eval_step(model)(state.params, state.buffers, batch)
    assert lf.same_bits(state, before)
    assert not lf.same_bits(new.buffers, before.buffers)


def test_batches_are_a_function_of_seed_and_step() -> None:
    split = Split(torch.arange(25).float(), torch.arange(25))
    whole = [y.tolist() for _, y in batches(split, 4, 7, 0, 15)]
    assert [y.tolist() for _, y in batches(split, 4, 7, 8, 15)] == whole[8:]
    first_epoch = [target for batch in whole[:6] for target in batch]
    assert len(set(first_epoch)) == len(first_epoch), "an epoch repeats no example"
    assert [y.tolist() for _, y in batches(split, 4, 8, 0, 15)] != whole
    assert [steps_per_epoch(25, size) for size in (1, 4, 25)] == [25, 6, 1]
    with pytest.raises(UserError, match="--batch-size: invalid value 0 "):
        steps_per_epoch(25, 0)
    with pytest.raises(UserError, match=r"--batch-size: invalid value 26 \(expected a whole number from 1 to 25"):
        next(batches(split, 26, 0, 0, 1))


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
    (again,) = measure(trainer, [result.best.params], [result.best.buffers], few_digits.val, torch.device("cpu"))
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
