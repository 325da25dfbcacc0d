"""The sparse engine in training, evaluation and whole runs: equal to the others and to itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import noted, with_splits
from torch import Tensor

import lthfunc as lf
from lthfunc.experiments.config import Config
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.trainings import iterative
from lthfunc.sparse import cost_model
from lthfunc.sparse.kernels import build
from lthfunc.training.engines import compiled as compiled_engine
from lthfunc.training.loop import take_steps
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.trainer import make_trainer, measure
from lthfunc.trees.types import Dataset, Split, TrainState

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))


@pytest.fixture(scope="module", name="images")
def small_images() -> Dataset:
    """Digits drawn larger, three channels: small images that a ResNet takes."""
    digits = lf.data.load("digits")

    def large(split: Split, n: int) -> Split:
        return Split(F.interpolate(split.x[:n], size=16, mode="bilinear").repeat(1, 3, 1, 1), split.y[:n])

    return digits._replace(train=large(digits.train, 240), val=large(digits.val, 60), test=large(digits.test, 60))


def trained(model: lf.Model, data: Dataset, state: TrainState, engine: Any, steps: int, **given: Any) -> TrainState:
    settings: dict[str, Any] = {"optimizer": lf.adam(1e-3), "batch_size": 40} | given
    return take_steps(make_trainer(model, data, engine=engine, **settings), state, seed=0, until=steps)[0]


def ticket_of(model: lf.Model, density: float) -> TrainState:
    return lf.prune(density=density, score=lf.random_scores(0))(lf.init(model))


@pytest.mark.parametrize("density", [1.0, 0.3, 0.03])
def test_hundreds_of_steps_equal_the_eager_engine(digits: Dataset, density: float) -> None:
    """Momentum, weight decay, a schedule. Stated: 1e-3 relative and 1e-3 absolute after 300 steps."""
    model = lf.models.lenet300((1, 8, 8), 10)
    optimizer = lf.sgd(lf.cosine(0.05, 300), momentum=0.9, nesterov=True, weight_decay=1e-3)
    start = ticket_of(model, density)
    states = [trained(model, digits, start, engine, 300, optimizer=optimizer) for engine in ("eager", lf.sparse_engine)]
    for name, leaf in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], leaf, rtol=1e-3, atol=1e-3)
    for name, mask in start.masks.items():
        assert not states[1].params[name][~mask].any()


@pytest.mark.parametrize("arch", ["conv2", "resnet20"])
def test_networks_of_the_catalogue_are_as_near_to_float64_as_the_eager_engine(images: Dataset, arch: str) -> None:
    """Normalisation over small batches amplifies rounding, so both engines are held to the same training in float64."""
    model = getattr(lf.models, arch)((3, 16, 16), 10)
    start = ticket_of(model, 0.2)
    optimizer = lf.sgd(0.01, momentum=0.9)
    wide = with_splits(images, lambda split: split._replace(x=split.x.double()))
    params, buffers = ({k: v.double() if v.is_floating_point() else v for k, v in tree.items()} for tree in start[:2])
    doubled = start._replace(params=params, buffers=buffers)
    exact = trained(model, wide, doubled, "eager", 10, optimizer=optimizer)
    ours = trained(model, images, start, lf.sparse_engine, 10, optimizer=optimizer)
    theirs = trained(model, images, start, "eager", 10, optimizer=optimizer)

    def distance(state: TrainState) -> float:
        pairs = [
            (getattr(state, tree)[k], v) for tree in ("params", "buffers") for k, v in getattr(exact, tree).items()
        ]
        return float(
            torch.stack(
                [(mine - v).abs().double().mean() / (v.abs().double().mean() + 1e-3) for mine, v in pairs]
            ).mean()
        )

    assert distance(ours) <= 2 * distance(theirs) + 1e-6


def test_results_do_not_depend_on_the_number_of_threads(images: Dataset) -> None:
    model = lf.models.conv2((3, 16, 16), 10)
    before = torch.get_num_threads()
    states = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            states.append(trained(model, images, ticket_of(model, 0.3), lf.sparse_engine, 6))
    finally:
        torch.set_num_threads(before)
    assert lf.same_bits(states[0], states[1])
    assert lf.same_bits(states[0], states[2])


def test_a_resumed_training_has_the_bits_of_one(digits: Dataset) -> None:
    model = lf.models.lenet300((1, 8, 8), 10)
    trainer = make_trainer(model, digits, optimizer=lf.adamw(1e-3), batch_size=40, engine=lf.sparse_engine)
    whole, _ = take_steps(trainer, ticket_of(model, 0.1), seed=1, until=90)
    part, _ = take_steps(trainer, ticket_of(model, 0.1), seed=1, until=37)
    assert lf.same_bits(take_steps(trainer, part, seed=1, until=90)[0], whole)


def test_losses_and_optimisers_of_the_users_own_work_unchanged(few_digits: Dataset) -> None:
    """An optimiser sees survivors by leaf, so that even one with a norm for each leaf gives what it gives densely."""

    def init(params: dict[str, Tensor]) -> Any:
        return {"moment": {name: torch.zeros_like(leaf) for name, leaf in params.items()}}

    def update(grads: dict[str, Tensor], state: Any, params: dict[str, Tensor], step: Tensor) -> Any:
        moment = {name: 0.9 * state["moment"][name] + grad / (grad.norm() + 1e-6) for name, grad in grads.items()}
        return {name: leaf - 1e-2 * moment[name] for name, leaf in params.items()}, {"moment": moment}

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, F.one_hot(targets, 10).float())

    model = lf.models.lenet300((1, 8, 8), 10)
    start = ticket_of(model, 0.3)
    states = [
        trained(model, few_digits, start, engine, 20, optimizer=Optimizer(init, update), loss=loss)
        for engine in ("eager", lf.sparse_engine)
    ]
    for name, leaf in states[0].params.items():
        torch.testing.assert_close(states[1].params[name], leaf, rtol=1e-3, atol=1e-4)
    moments = [state.opt["moment"]["fc1.weight"] for state in states]
    torch.testing.assert_close(moments[1] * start.masks["fc1.weight"], moments[0], rtol=1e-3, atol=1e-4)
    trainers = [
        make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=40, loss=loss, engine=engine)
        for engine in ("eager", lf.sparse_engine)
    ]
    theirs, ours = (measure(trainer, [start], few_digits.test) for trainer in trainers)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)


def test_evaluation_sees_new_survivors(few_digits: Dataset) -> None:
    """The kept program serves fewer survivors, and other ones get their own."""
    model = lf.models.lenet300((1, 8, 8), 10)
    engines = [
        make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=40, engine=engine)
        for engine in ("eager", lf.sparse_engine)
    ]
    for density, seed in ((0.2, 0), (0.199, 0), (0.2, 1), (1.0, 0), (0.05, 2)):
        state = lf.prune(density=density, score=lf.random_scores(seed))(lf.init(model, seed))
        theirs, ours = (measure(one, [state], few_digits.val)[0] for one in engines)
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_whole_run_with_controls_compiles_at_most_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its densities: masks are lists, which are arguments. What always is sparse compiles nothing."""
    monkeypatch.setattr(cost_model, "has_wide_amd_cores", lambda: False)
    made: list[str] = []
    monkeypatch.setattr(compiled_engine, "compiled", lambda *a: (noted(made, a[0].__name__), a[0])[1])
    settings: dict[str, Any] = {"steps": 4, "rounds": 4, "rate": 0.5, "eval_every": 2, "engine": "sparse/compile"}
    for arch, controls, trainings, expected in (("lenet300", ("reinit",), 9, 0), ("conv2", (), 5, 1)):
        made.clear()
        plan = prepare(resolved(Config(arch=arch, control=controls, **settings))).plan
        assert len(list(iterative(plan, 0))) == trainings
        assert made.count("in_place") == expected
