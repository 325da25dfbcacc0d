"""Every method as a composition of the library's own parts, on data so small that all of them run in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from method_plans import Outcome, is_once, outcome, plan_for
from small import NET, data
from torch import Tensor

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.methods.during_training import period, settled
from lthfunc.training.mask_updates import UpdateContext
from lthfunc.training.optimizers import AdamNumbers
from lthfunc.trees.ops import masked_like
from lthfunc.trees.rng import key
from lthfunc.trees.types import Masks, TrainState

SEED, STEPS, DENSITY = 3, 20, 0.4
MODEL = lf.from_module(NET)


def a_trainer(model: lf.Model = MODEL, optimizer: Any = None) -> Any:
    return lf.make_trainer(model, data(), optimizer=optimizer or lf.sgd(lf.stepwise(0.2, (12,)), 0.5), batch_size=5)


def found(name: str, **given: Any) -> Outcome:
    """What a method ends as; two rounds of iterative ones."""
    once = is_once(name)
    values = {"density": DENSITY, **({} if once else {"rounds": 2}), **given}
    table = {"schedule": "step", "milestone": (12,)} if name != "imp-cyclic" else {"cycles": 2}
    plan = plan_for(
        name, MODEL, data(), steps=STEPS, eval_every=6, batch_size=5, lr=0.2, momentum=0.5, **table, **values
    )
    return outcome(plan, SEED)


def pruned(**how: Any) -> Callable[[TrainState], TrainState]:
    return lf.prune(**{"density": DENSITY, **how})


def batches(purpose: str, number: int, count: int = 10) -> Any:
    return lf.sample_batches(data(), 5, count, key(SEED, purpose, number))


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
        "snip": lambda: lf.snip(loss, batches("score", 1)),
        "grasp": lambda: lf.grasp(loss, batches("score", 1)),
        "synflow": lambda: lf.synflow(lf.forward_of(MODEL, start.buffers), (6,)),
        "magnitude": lambda: lf.magnitude,
        "random": lambda: lf.random_scores(SEED, "score"),
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
        masks = lf.shuffled_masks(sparse.masks, key(SEED, "control-shuffle", 1))
        return with_drawn(sparse._replace(masks=masks))
    if ablation == "reinit":
        return lf.reinitialised(sparse, MODEL, key(SEED, "control-reinit", 1))
    return sparse


def ends_as(ended: Outcome, state: TrainState, before: int = 0, trainer: Any = None, until: int = STEPS) -> None:
    """An outcome is that of training this state to the end, and of what validation chose after the last change."""
    trainer = trainer or a_trainer()
    fit = lf.fit(trainer, state, seed=SEED, until=until, eval_every=6)
    assert lf.same_bits(ended.masks, state.masks)
    assert lf.same_bits(ended.last.fit.state.params, fit.state.params)
    assert ended.steps == before + until - int(state.step)
    mine = ended.last.fit
    network = state._replace(params=mine.best.params)
    assert ended.test.accuracy == pytest.approx(lf.accuracy_on(MODEL, network, data()))
    if not mine.changes:
        assert lf.same_bits(ended.ticket.params, fit.best.params)
        return
    last = max(each.step for each in mine.changes if each.exchanged)
    assert mine.best.point == min((point for point in mine.curve if point.step > last), key=lambda each: each.val_loss)
    loss = lf.accuracy_on(MODEL, network, data(), "val", lf.cross_entropy)
    assert loss == pytest.approx(mine.best.point.val_loss)
    assert all(not network.params[name][~mask].any() for name, mask in state.masks.items())


ABLATED = [
    f"{base}{ablation}"
    for base in ("snip", "grasp", "synflow")
    for ablation in ("", "-shuffled", "-reinit", "-inverted")
]
SYNFLOW = ("synflow", "synflow-shuffled", "synflow-reinit")
INITIAL = [*ABLATED, "magnitude-init", "random-uniform", "random-erk", "random-balanced"]


@pytest.mark.parametrize("name", INITIAL)
def test_pruning_at_initialisation(name: str) -> None:
    ends_as(found(name, **({"score_rounds": 3} if name in SYNFLOW else {})), at_init(name))


def test_iterative_methods() -> None:
    trainer, start = a_trainer(), lf.init(MODEL, SEED)
    cyclic = a_trainer(optimizer=lf.sgd(lf.cyclic(0.2, STEPS, 2), 0.5))

    def run(state: TrainState, until: int, by: Any = trainer) -> TrainState:
        return lf.take_steps(by, state, seed=SEED, until=until)[0]

    def halfway(**how: Any) -> Any:
        return lf.prune(fraction=1 - DENSITY**0.5, **how)

    ends_as(found("dense"), start)
    ends_as(found("one-shot"), lf.rewound(pruned()(run(start, STEPS)), start), STEPS)
    state = start
    for _ in range(2):
        state = lf.rewound(halfway()(run(state, STEPS)), start)
    ends_as(found("imp"), state, 2 * STEPS)
    state = anchor = run(start, 1)  # 5 % of 20 steps
    for _ in range(2):
        state = lf.rewound(halfway()(run(state, STEPS)), anchor)
    ends_as(found("imp-late"), state, STEPS + STEPS - 1)
    for name, by in (("imp-lr", trainer), ("imp-cyclic", cyclic)):
        state = start
        for _ in range(2):
            state = lf.learning_rate_rewound(halfway()(run(state, STEPS, by)))
        ends_as(found(name), state, 2 * STEPS, by)
    state = start
    for number in (1, 2):
        state = lf.finetuned(halfway()(run(state, number * STEPS)))
    ends_as(found("imp-tuned"), state, 2 * STEPS, until=3 * STEPS)
    for name, allocate in (("erk", lf.erk()), ("balanced", lf.balanced())):
        state = start
        for _ in range(2):
            how = {"score": lf.random_scores(SEED, "score"), "allocate": allocate}
            state = lf.learning_rate_rewound(halfway(**how)(run(state, STEPS)))
        ends_as(found(f"iterative-random-{name}"), state, 2 * STEPS)


def test_masks_that_change_in_training() -> None:
    trainer, start = a_trainer(), lf.init(MODEL, SEED)

    def run(state: TrainState, until: int) -> TrainState:
        return lf.take_steps(trainer, state, seed=SEED, until=until)[0] if until > int(state.step) else state

    end = 15  # three quarters; a thirtieth of it is less than a step
    for structure, select in (("unstructured", lf.unstructured), ("per-output", lf.per_output())):
        state = start
        for step, density in lf.cubic(DENSITY, 1, end, 1):
            before = run(state, step)
            sparse = lf.prune(density=density, select=select)(before)
            state = sparse._replace(opt=masked_like(before.opt, sparse.masks))
        ends_as(found("gradual", structure=structure), state, end)
    loss = lf.loss_of(MODEL, start.buffers)
    for name, every, until, share, falling in (
        ("set", 1, 0.75, 0.3, "cosine"), ("rigl", 1, 0.75, 0.3, "cosine"), ("rigl", 3, 0.5, 0.6, "linear"),
        ("set", 4, 0.9, 0.5, "constant"),
    ):  # fmt: skip
        state = pruned(score=lf.random_scores(SEED, "score"), allocate=lf.erk())(start)
        end = round(until * STEPS)
        for step in range(every, end, every):
            state = run(state, step)
            gradient = lf.mean_gradient(loss, batches("growth", step, 1))(state.params, state.masks)
            promise = {layer: leaf.abs() for layer, leaf in gradient.items()}
            growth = lf.random_growth(SEED, step) if name == "set" else promise
            now = {"cosine": lf.cosine_drop_fraction, "linear": lf.linear_drop_fraction}.get(falling)
            state = lf.drop_and_grow(state, growth, share if now is None else now(share, step, end))
        given = {"update_every": every, "update_until": until, "drop_fraction": share, "drop_schedule": falling}
        ends_as(found(name, **given), state, step)
    state, masks = start, []
    for step in range(1, STEPS):
        state = run(state, step)
        masks.append(pruned()(state).masks)
        if len(masks) >= 5 and all(lf.mask_distance(masks[-1], other) <= 0.1 for other in masks[-5:-1]):
            break
    ends_as(found("early-bird"), pruned()(state), int(state.step))
    # Four masks are too few to have settled: the last of them is taken.
    ends_as(found("early-bird", update_every=4), pruned()(run(start, 16)), 16)


def test_masks_are_trained_by_their_own_optimisers() -> None:
    """Log odds by Adam at 0.2, straight-through weights and edge-popup's scores by the plan's own."""
    for name in ("ste", "edge-popup", "supermask"):
        plan = plan_for(name, MODEL, data(), steps=STEPS, eval_every=6, batch_size=5, density=DENSITY)
        ended = outcome(plan, SEED)
        assert lf.count(ended.masks).kept == pytest.approx(18, abs=1), name
        assert ended.steps == STEPS
        work = plan.through[0].trainer.work
        assert work.model.name == name
        if name != "supermask":
            assert work.optimizer is plan.trainer.work.optimizer
            continue
        assert work.optimizer.numbers == AdamNumbers((0.9, 0.999), 1e-8, 0.0, False)
        assert work.optimizer.init({"a": torch.zeros(1)}).schedule.tolist() == pytest.approx([0.2])


def test_early_birds_remember_the_last_five_masks_until_they_prune() -> None:
    plan = plan_for("early-bird", MODEL, data(), steps=STEPS, eval_every=6, batch_size=5, density=DENSITY)
    (updates,), drawn = plan.updates, [lf.init(MODEL, seed) for seed in range(7)]
    memory: tuple[Masks, ...] = ()
    for number, state in enumerate(drawn, 1):
        memory = updates.remember(state, UpdateContext(SEED, number, False, memory))
        last = [pruned()(each).masks for each in drawn[max(0, number - 5) : number]]
        assert len(memory) == len(last)
        assert all(lf.same_bits(mask, wanted) for mask, wanted in zip(memory, last, strict=True))
    assert updates.remember(pruned()(drawn[-1]), UpdateContext(SEED, 8, False, memory)) == ()


def test_masks_settle_after_five_alike() -> None:
    def mask(kept: int) -> dict[str, Tensor]:
        return {"a": torch.arange(20) < kept}

    assert not settled([mask(8)] * 4)
    assert settled([mask(8)] * 5)
    assert settled([mask(8), mask(10), mask(9), mask(8), mask(8)])  # two of twenty are a tenth
    assert not settled([mask(8), mask(11), mask(9), mask(8), mask(8)])
    assert settled([mask(8), mask(10), mask(9), mask(10), mask(9)])
    assert not settled([mask(8)] * 6)
    for place in range(5):
        assert not settled([mask(11 if number == place else 8) for number in range(5)])


def test_updates_come_thirty_times_and_end_before_masks_stay() -> None:
    long = plan_for("snip", MODEL, data(), steps=200, eval_every=200, batch_size=5, density=DENSITY)
    short = long._replace(steps=4)
    assert period(long, None, 0.75) == (150, 5)
    assert [period(short, every, 0.5) for every in (None, 1)] == [(2, 1), (2, 1)]
    with pytest.raises(UserError, match=r"^--update-every: invalid value 2 \(expected at most 1, as masks no longer"):
        period(short, 2, 0.5)
    with pytest.raises(UserError, match=r"^--steps: the training is too short for an update of masks"):
        period(short, None, 0.25)


def test_blocks_are_pruned_in_a_run() -> None:
    """One after the other, by ten batches; layers outside of blocks count in the density."""
    trained = lf.take_steps(a_trainer(), lf.init(MODEL, SEED), seed=SEED, until=STEPS)[0]
    inputs = [x for x, _ in batches("score", 1)]
    cases: list[tuple[str, dict[str, Any], float, dict[str, Any]]] = [
        ("sparsegpt", {}, DENSITY, {"pruning": lf.sparsegpt_pruning()}),
        (
            "wanda",
            {"block_budgets": "alpha"},
            DENSITY,
            {"pruning": lf.wanda_pruning(), "budgets": lf.alpha_pruning()},
        ),
        ("wanda", {"blocks": ("1",)}, 3 / 30, {"pruning": lf.wanda_pruning(), "blocks": ["1"]}),
        ("wanda", {"structure": "1x1"}, DENSITY, {"pruning": lf.wanda_pruning(lf.blocks(1, 1))}),
        (
            "wanda",
            {"structure": "1x2", "exempt": ("3.*",)},
            DENSITY,
            {"pruning": lf.wanda_pruning(lf.blocks(1, 2, exempt=["3.*"]))},
        ),
    ]
    for name, given, density, how in cases:
        state = lf.learning_rate_rewound(lf.prune_sequentially(MODEL, inputs, density, **how)(trained))
        ended = found(name, **given)
        ends_as(ended, state, STEPS)
        assert lf.count(ended.masks).kept == 18

    def planned(**given: Any) -> None:  # what cannot be pruned is refused before anything is trained
        plan_for("wanda", MODEL, data(), steps=STEPS, eval_every=6, batch_size=5, **given)

    for density, shown in ((DENSITY, r"0\.4"), (2 / 3, r"0\.666667")):  # two thirds are the 30 themselves
        with pytest.raises(UserError, match=f"^--density: {shown} of 45 weights are no more than the 30 outside of "):
            planned(density=density, blocks=("3",))
    planned(density=31 / 45, blocks=("3",))
    with pytest.raises(UserError, match=r"^--blocks: invalid value '7'"):
        planned(density=DENSITY, blocks=("7",))


def test_trying_blocks_leaves_the_global_generators_alone() -> None:
    class Drawing(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0 * torch.rand(())

    model = lf.from_module(torch.nn.Sequential(torch.nn.Linear(6, 5), Drawing(), torch.nn.Linear(5, 3)))
    before = torch.get_rng_state()
    plan_for("wanda", model, data(), steps=STEPS, eval_every=6, batch_size=5, density=DENSITY)
    assert torch.equal(torch.get_rng_state(), before)
