"""Every method as a composition of the library's own parts, on data so small that all of them run in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import NET, data, settings
from torch import Tensor

import lthfunc as lf
from lthfunc.catalog.methods import METHODS
from lthfunc.errors import UserError
from lthfunc.experiments import plan as planning
from lthfunc.experiments.methods import iterative, prepare
from lthfunc.experiments.methods.context import MethodContext
from lthfunc.experiments.methods.iterative import why_not_tuned
from lthfunc.experiments.methods.prepare import check_methods, method_context, methods_for
from lthfunc.experiments.methods.while_training import settled
from lthfunc.training.optimizers import AdamNumbers, SGDNumbers
from lthfunc.trees.ops import masked_like
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState

SEED, STEPS, DENSITY = 3, 20, 0.4
MODEL = lf.from_module(NET)


def a_trainer(model: lf.Model = MODEL, optimizer: Any = None) -> Any:
    return lf.make_trainer(
        model, data(), optimizer=optimizer or lf.sgd(lf.stepwise(0.2, (12,), 0.5), 0.5), batch_size=5
    )


@pytest.fixture(scope="module")
def setting() -> MethodContext:
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
    assert of_ste is of_popup is setting.trainer.optimizer
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


# ---- the setting ----


def test_which_methods_mean_something(setting: MethodContext) -> None:
    check_methods(settings(density=0.5), ("imp", "snip"))
    with pytest.raises(UserError, match=r"^--method: unknown name 'impp'; did you mean 'imp'"):
        check_methods(settings(density=0.5), ("snip", "impp"))
    with pytest.raises(UserError, match=r"^--density: methods are compared at one; give it"):
        check_methods(settings(), ("imp",))
    every = tuple(METHODS)
    assert every == tuple(METHODS)
    assert {*INITIAL, "imp-tuned", "edge-popup"} < set(every)
    assert why_not_tuned(setting) is None
    assert methods_for(setting, ()) == (every, None)
    assert methods_for(setting, ("imp-tuned",)) == (("imp-tuned",), None)
    assert why_not_tuned(setting._replace(schedule=None)) is None
    for schedule, words in (
        (lf.constant(0.1), "imp-tuned needs a --schedule that falls"),
        (torch.tensor([0.1, 0.2]), "imp-tuned needs a --schedule that falls"),
        (lf.cosine(0.1, STEPS), "imp-tuned would train at the schedule's last rate, which is about 0"),
    ):
        other = setting._replace(schedule=schedule)
        assert str(why_not_tuned(other)).startswith(words)
        some, note = methods_for(other, ())
        assert some == tuple(name for name in every if name != "imp-tuned")
        assert str(note).startswith(f"imp-tuned is left out: {words}")
        assert methods_for(other, ("imp", "snip")) == (("imp", "snip"), None)
        with pytest.raises(UserError, match=f"^--method: {words}"):
            methods_for(other, ("imp", "imp-tuned"))
        with pytest.raises(UserError, match=f"^{words}"):
            iterative.imp_tuned(other, 0)
    late = setting._replace(schedule=lf.cosine(0.1, 3 * STEPS))  # at 0 only after both
    assert why_not_tuned(late) is None


def test_a_setting_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(
        dataset="digits", density=0.25, rounds=3, steps=12, eval_every=5, momentum=0.5, weight_decay=0.125, lr=0.5,
        schedule="step", milestone=(4,), cycles=2, batch_size=40, loss="auto", metric="top-2", on_nonfinite="skip",
        synflow_rounds=7, engine="eager", threads=3, augment=True,
    )  # fmt: skip
    config, found = method_context(given)
    assert (config.engine, config.threads) == ("eager", 3)
    assert (found.steps, found.eval_every, found.rounds, found.density) == (12, 5, 3, 0.25)
    assert (found.device, found.synflow_rounds, found.shape) == ("cpu", 7, (1, 8, 8))
    assert found.schedule is not None
    assert found.schedule.tolist() == lf.stepwise(0.5, (4,)).tolist()
    other = found.trainer_of(found.model, lf.adam(0.1))
    assert found.cyclic is not None
    for trainer in (found.trainer, found.cyclic, other):
        assert (trainer.batch_size, trainer.on_nonfinite, trainer.engine.name) == (40, "skip", "eager")
        assert (trainer.precision, trainer.loss) == ("fp32", lf.cross_entropy)
        assert float(trainer.metric(torch.tensor([[3.0, 2, 1]]), torch.tensor([1]))) == 1.0
    assert other.optimizer.numbers == AdamNumbers((0.9, 0.999), 1e-8, 0.0, False)
    assert found.cyclic.optimizer.numbers == found.trainer.optimizer.numbers == SGDNumbers(0.5, False, 0.125)
    params = lf.init(found.model).params
    assert torch.equal(found.cyclic.optimizer.init(params).schedule, lf.cyclic(0.5, 12, 2).float())
    assert torch.equal(found.trainer.optimizer.init(params).schedule, lf.stepwise(0.5, (4,)).float())
    plain = lf.init(found.model)
    moved = [lf.take_steps(each, plain, seed=0, until=1)[0].params for each in (found.trainer, found.trainer_of(
        found.model, lf.sgd(lf.stepwise(0.5, (4,)), 0.5, weight_decay=0.125)))]  # fmt: skip
    assert lf.same_bits(*moved)  # its images shifted and mirrored alike
    unmoved = method_context(settings(**{**vars(given), "augment": False}))[1]
    assert not lf.same_bits(lf.take_steps(unmoved.trainer, plain, seed=0, until=1)[0].params, moved[0])
    half = method_context(settings(density=0.25, steps=4, precision="bf16", engine="eager", schedule="constant"))[1]
    assert half.trainer_of(half.model, lf.sgd(0.1)).precision == half.trainer.precision == "bf16"
    # Where the sparse engine cannot be, the plain one; other mistakes are told.
    seen: list[str] = []

    def cannot(config: Any) -> Any:
        seen.append(config.engine)
        if config.engine == "sparse/eager":
            raise UserError("--engine: invalid value 'sparse/eager'")
        return original(config)

    original = planning.prepare
    monkeypatch.setattr(prepare, "prepare", cannot)
    config, found = method_context(settings(density=0.25, steps=4))
    assert (seen, config.engine, config.threads, found.synflow_rounds) == (["sparse/eager", "eager"], "eager", 1, 100)

    def wrong(config: Any) -> Any:
        seen.append(config.engine)
        raise UserError(words)

    monkeypatch.setattr(prepare, "prepare", wrong)
    for engine, words, tried in (
        ("auto", "--lr: bad", ["sparse/eager"]), ("auto", "--engine: bad", ["sparse/eager", "eager"]),
        ("compile", "--engine: bad", ["compile"]),
    ):  # fmt: skip
        seen.clear()
        with pytest.raises(UserError, match=f"^{words}$"):
            method_context(settings(density=0.25, engine=engine))
        assert seen == tried
