"""Every method as a composition of the library's own parts, on data so small that all of them run in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import NET, data
from torch import Tensor

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.experiments.methods.context import MethodContext
from lthfunc.experiments.methods.while_training import settled
from lthfunc.training.optimizers import AdamNumbers
from lthfunc.trees.ops import masked_like
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState

SEED, STEPS, DENSITY = 3, 20, 0.4
MODEL = lf.from_module(NET)


def a_trainer(model: lf.Model = MODEL, optimizer: Any = None) -> Any:
    return lf.make_trainer(
        model, data(), optimizer=optimizer or lf.sgd(lf.stepwise(0.2, (12,), 0.5), 0.5), batch_size=5
    )


@pytest.fixture(scope="module", name="setting")
def a_setting() -> MethodContext:
    cycles = a_trainer(optimizer=lf.sgd(lf.cyclic(0.2, STEPS, 2), 0.5))
    return MethodContext(
        MODEL, a_trainer(), a_trainer, cycles, steps=STEPS, eval_every=6, rounds=2, density=DENSITY, device="cpu",
        schedule=lf.stepwise(0.2, (12,), 0.5), synflow_rounds=3,
    )  # fmt: skip


def pruned(**how: Any) -> Callable[[TrainState], TrainState]:
    return lf.prune(**{"density": DENSITY, **how})


def batches(purpose: str, count: int = 10) -> Any:
    return lf.sample_batches(data(), 5, count, key(SEED, purpose))


def in_rounds(densities: list[float], **how: Any) -> TrainState:
    state = lf.init(MODEL, SEED)
    for density in densities:
        state = lf.prune(density=density, **how)(state)
    return state


def with_drawn(state: TrainState) -> TrainState:
    """Under the masks, the weights as they were drawn."""
    return state._replace(params=lf.apply_masks(lf.init(MODEL, SEED).params, state.masks))


def at_init(name: str) -> TrainState:
    start = lf.init(MODEL, SEED)
    loss = lf.loss_of(MODEL, start.buffers)
    scores: dict[str, Callable[[], lf.Score]] = {
        "snip": lambda: lf.snip(loss, batches("snip")),
        "grasp": lambda: lf.grasp(loss, batches("grasp")),
        "synflow": lambda: lf.synflow(lf.forward_of(MODEL, start.buffers), (6,)),
        "magnitude": lambda: lf.magnitude,
        "random": lambda: lf.random_scores(SEED, "at-init"),
    }
    base, _, ablation = name.partition("-")
    if base == "random":
        allocate = {"uniform": lf.uniform(), "erk": lf.erk(), "balanced": lf.balanced()}[ablation]
        return pruned(score=scores[base](), allocate=allocate)(start)
    if ablation == "inverted":
        return pruned(score=lf.inverted_score(scores[base]()))(start)
    rounds = [DENSITY ** (k / 3) for k in (1, 2, 3)] if base == "synflow" else [DENSITY]
    sparse = with_drawn(in_rounds(rounds, score=scores[base]()))
    if ablation == "shuffled":
        masks = lf.shuffled_masks(sparse.masks, key(SEED, "ablation-shuffle"))
        return with_drawn(sparse._replace(masks=masks))
    if ablation == "reinit":
        return lf.reinitialised(sparse, MODEL, key(SEED, "ablation-reinit"))
    return sparse


def ends_as(found: Any, state: TrainState, before: int = 0, trainer: Any = None, until: int = STEPS) -> None:
    """An outcome is that of training this state to the end, and of what validation chose on the way."""
    trainer = trainer or a_trainer()
    fit = lf.fit(trainer, state, seed=SEED, until=until, eval_every=6)
    assert lf.same_bits(found.ticket.masks, state.masks)
    assert lf.same_bits(found.ticket.params, fit.best.params)
    assert found.steps == before + until - int(state.step)
    chosen = state._replace(params=fit.best.params, buffers=fit.best.buffers)
    assert found.test.accuracy == pytest.approx(lf.accuracy_on(MODEL, chosen, data()))


ABLATED = [
    f"{base}{ablation}"
    for base in ("snip", "grasp", "synflow")
    for ablation in ("", "-shuffled", "-reinit", "-inverted")
]
INITIAL = [*ABLATED, "magnitude-init", "random-uniform", "random-erk", "random-balanced"]


@pytest.mark.parametrize("name", INITIAL)
def test_pruning_at_initialisation(name: str, setting: MethodContext) -> None:
    ends_as(METHODS.load(name)(setting, SEED), at_init(name))


def test_iterative_methods(setting: MethodContext) -> None:
    trainer, start = setting.trainer, lf.init(MODEL, SEED)

    def run(state: TrainState, until: int, by: Any = trainer) -> TrainState:
        return lf.take_steps(by, state, seed=SEED, until=until)[0]

    two = [DENSITY**0.5, DENSITY]
    ends_as(METHODS.load("dense")(setting, SEED), start)
    ends_as(METHODS.load("one-shot")(setting, SEED), lf.rewound(pruned()(run(start, STEPS)), start), STEPS)
    state = start
    for density in two:
        state = lf.rewound(pruned(density=density)(run(state, STEPS)), start)
    ends_as(METHODS.load("imp")(setting, SEED), state, 2 * STEPS)
    state = anchor = run(start, 1)  # 5 % of 20 steps
    for density in two:
        state = lf.rewound(pruned(density=density)(run(state, STEPS)), anchor)
    ends_as(METHODS.load("imp-late")(setting, SEED), state, STEPS + STEPS - 1)
    for name, by in (("imp-lr", trainer), ("imp-cyclic", setting.cyclic)):
        state = start
        for density in two:
            state = lf.learning_rate_rewound(pruned(density=density)(run(state, STEPS, by)))
        ends_as(METHODS.load(name)(setting, SEED), state, 2 * STEPS, by)
    state = start
    for number, density in enumerate(two, 1):
        state = lf.finetuned(pruned(density=density)(run(state, number * STEPS)))
    ends_as(METHODS.load("imp-tuned")(setting, SEED), state, 2 * STEPS, until=3 * STEPS)
    for name, allocate in (("erk", lf.erk()), ("balanced", lf.balanced())):
        state = start
        for density in two:
            how = {"score": lf.random_scores(SEED, "iterative"), "allocate": allocate}
            state = lf.learning_rate_rewound(pruned(density=density, **how)(run(state, STEPS)))
        ends_as(METHODS.load(f"iterative-random-{name}")(setting, SEED), state, 2 * STEPS)


def test_masks_that_change_in_training(setting: MethodContext) -> None:
    trainer, start = setting.trainer, lf.init(MODEL, SEED)

    def run(state: TrainState, until: int) -> TrainState:
        return lf.take_steps(trainer, state, seed=SEED, until=until)[0] if until > int(state.step) else state

    end = 15  # three quarters; a thirtieth of it is less than a step
    state = start
    for step, density in lf.cubic(DENSITY, 1, end, 1):
        sparse = lf.prune(density=density)(run(state, step))
        state = sparse._replace(opt=masked_like(run(state, step).opt, sparse.masks))
    ends_as(METHODS.load("gradual")(setting, SEED), state, end)
    loss = lf.loss_of(MODEL, start.buffers)
    for name in ("set", "rigl"):
        state = pruned(score=lf.random_scores(SEED, "at-init"), allocate=lf.erk())(start)
        for step in range(1, end):
            state = run(state, step)
            if name == "set":
                promise = lf.random_scores(SEED, "regrow", step)(state.params, state.masks)
            else:
                gradient = lf.mean_gradient(loss, batches(f"regrow/{step}", 1))(state.params, state.masks)
                promise = {layer: leaf.abs() for layer, leaf in gradient.items()}
            state = lf.drop_and_grow(state, promise, lf.cosine_drop_fraction(0.3, step, end))
        ends_as(METHODS.load(name)(setting, SEED), state, end - 1)
    state, masks = start, []
    for step in range(1, STEPS):
        state = run(state, step)
        masks.append(pruned()(state).masks)
        if len(masks) >= 5 and all(lf.mask_distance(masks[-1], other) <= 0.1 for other in masks[-5:-1]):
            break
    ends_as(METHODS.load("early-bird")(setting, SEED), pruned()(state), int(state.step))


def test_masks_are_trained_by_their_own_optimisers(setting: MethodContext) -> None:
    """Log odds by Adam at 0.2, straight-through weights and edge-popup's scores by the setting's own."""
    seen: list[Any] = []

    def trainer_of(model: lf.Model, optimizer: Any) -> Any:
        seen.append((model.name, optimizer))
        return a_trainer(model, optimizer)

    for name in ("ste", "edge-popup", "supermask"):
        found = METHODS.load(name)(setting._replace(trainer_of=trainer_of), SEED)
        assert lf.count(found.ticket.masks).kept == pytest.approx(18, abs=1), name
        assert found.steps == STEPS
    (ste, of_ste), (popup, of_popup), (mask, of_mask) = seen
    assert (ste, popup, mask) == ("ste", "edge-popup", "supermask")
    assert of_ste is of_popup is setting.trainer.work.optimizer
    assert of_mask.numbers == AdamNumbers((0.9, 0.999), 1e-8, 0.0, False)
    assert of_mask.init({"a": torch.zeros(1)}).schedule.tolist() == pytest.approx([0.2])


def test_masks_settle_after_five_alike() -> None:
    def mask(kept: int) -> dict[str, Tensor]:
        return {"a": torch.arange(20) < kept}

    assert not settled([mask(8)] * 4)
    assert settled([mask(8)] * 5)
    assert settled([mask(8), mask(10), mask(9), mask(8), mask(8)])  # two of twenty are a tenth
    assert not settled([mask(8), mask(11), mask(9), mask(8), mask(8)])
    assert settled([mask(8), mask(10), mask(9), mask(10), mask(9)])
    assert not settled([mask(8)] * 6)
