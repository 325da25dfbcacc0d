"""Weights that are exchanged on the survivors that the sparse engine keeps: the bits of dense trees; its kernels."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from method_plans import plan_for
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.errors import UserError
from lthfunc.experiments.functions import growth_of
from lthfunc.experiments.methods.during_training import exchanges
from lthfunc.sparse.kernels import build
from lthfunc.sparse.patterns import Entries, blocks_of, lists_of, matrix_lists
from lthfunc.sparsify.ranking import ranks
from lthfunc.training.loop import fit_together
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext, can_exchange
from lthfunc.training.session import TrainingSession
from lthfunc.trees.types import SurvivorPruning

pytestmark = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))

NET = nn.Sequential(
    nn.Conv2d(2, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
    nn.Linear(45, 20), nn.ReLU(), nn.Linear(20, 3),
)  # fmt: skip
MODEL = lf.from_module(NET)
#: Without dropout, whose draws are the machine's own where it takes the gradient by which weights grow.
STEADY = lf.from_module(nn.Sequential(*(part for part in NET if not isinstance(part, nn.Dropout))))
OPTIMIZERS = {
    "plain": lf.sgd(0.05),  # which keeps nothing from step to step
    "momentum": lf.sgd(0.05, momentum=0.9),
    "adamw": lf.adamw(0.01, weight_decay=0.1, decays=lf.is_matrix),
    "everything": lf.chain(lf.accumulate(2), lf.clip_by_global_norm(1.0), lf.adam(0.01), lf.ema(0.8)),
}
CHANGED = (2, 5, 6, 9)


def images(bad: int | None = None) -> lf.Dataset:
    x = torch.randn(60, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    if bad is not None:
        x[bad] = 3e38  # which overflows
    y = torch.arange(60) % 3
    return lf.data.from_tensors("images", (x[:40], y[:40]), (x[40:], y[40:]), val=8)


def updates_of(trainer: lf.Trainer, growth: str) -> MaskUpdates:
    return exchanges(trainer, CHANGED, growth_of(growth), lambda step: 0.4 - step / 50)


def ticket(seed: int, model: lf.Model) -> lf.TrainState:
    return lf.prune(density=0.4, score=lf.random_scores(seed))(lf.init(model, seed))


def fits(
    trainer: lf.Trainer,
    updates: MaskUpdates,
    seeds: tuple[int, ...] = (0, 1),
    starts: list[lf.TrainState] | None = None,
) -> list[lf.Fit]:
    starts = starts or [ticket(seed, trainer.work.model) for seed in seeds]
    return fit_together(trainer, starts, seeds=list(seeds), until=12, eval_every=6, updates=updates)


def same(ours: lf.Fit, theirs: lf.Fit) -> bool:
    facts = [repr((each.changes, each.curve[1:], each.best.point)) for each in (ours, theirs)]  # NaN is NaN
    return facts[0] == facts[1] and lf.same_bits((ours.state, ours.best[1:]), (theirs.state, theirs.best[1:]))


@pytest.mark.parametrize("growth", ["random", "gradient"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_exchanges_on_survivors_have_the_bits_of_dense_trees(
    optimizer: str, growth: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, model = OPTIMIZERS[optimizer], MODEL if growth == "random" else STEADY
    trainer = lf.make_trainer(model, images(), optimizer=made, batch_size=8, engine=lf.sparse_engine)
    updates = updates_of(trainer, growth)
    theirs = fits(trainer, updates._replace(exchange=None))
    dense: list[int] = []
    change_to = TrainingSession.change_to

    def counted(session: TrainingSession, states: Any, since: Any) -> None:
        dense.append(int(states[0].step))
        change_to(session, states, since)

    monkeypatch.setattr(TrainingSession, "change_to", counted)
    for mine, other in zip(fits(trainer, updates), theirs, strict=True):
        assert same(mine, other)
        assert [each.step for each in mine.changes] == list(CHANGED)
        assert all(each.exchanged > 0 for each in mine.changes)
    assert dense == []  # not even where the network is evaluated anyway


def test_a_step_that_is_not_finite_is_left_out_after_an_exchange_too() -> None:
    """Steps are repeated from the network as it was right after the exchange."""
    given: dict[str, Any] = {"optimizer": lf.adam(0.01), "batch_size": 8, "on_nonfinite": "skip"}
    found = []
    for bad in (8, 24):  # of an example that is seen three times, at different steps
        trainer = lf.make_trainer(MODEL, images(bad), engine=lf.sparse_engine, **given)
        updates = updates_of(trainer, "random")
        found.append([fits(trainer, each, (3,))[0] for each in (updates, updates._replace(exchange=None))])
    assert all(same(*pair) for pair in found)


def drawn(size: int, seed: int, values: int) -> tuple[Tensor, Tensor]:
    """(scores with many ties, places that are taken)."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-values, values, (size,), generator=generator) / 7
    return scores, (torch.rand(size, generator=generator) < 0.3).nonzero().flatten()


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("values", [1, 3, 10_000])
def test_the_largest_are_those_of_the_ranks(size: int, values: int) -> None:
    build.load_kernels()
    scores, taken = drawn(size, values, values)
    free = torch.ones(size, dtype=torch.bool).index_fill_(0, taken, False)
    for count in {0, 1, size // 3, int(free.sum())}:
        if count <= free.sum():
            found = torch.empty(count, dtype=torch.int64)
            torch.ops.lthfunc.largest(scores, taken, found)
            assert torch.equal(found, ((ranks(scores, free) < count) & free).nonzero().flatten())
    for wrong, places, count in (
        ("more scores wanted", taken, size + 1), ("must rise", torch.tensor([size]), 0 if size == 1 else 1),
        ("must rise", torch.tensor([0, 0]), 1 if size > 2 else 0),
    ):  # fmt: skip
        if count:
            with pytest.raises(ValueError, match=wrong):
                torch.ops.lthfunc.largest(scores, places, torch.empty(count, dtype=torch.int64))


@pytest.mark.parametrize("place", [0, 5000, 9999])
def test_scores_that_are_no_numbers_have_no_largest(place: int) -> None:
    build.load_kernels()
    scores = torch.arange(10_000.0).index_fill(0, torch.tensor([place]), float("nan"))
    with pytest.raises(ValueError, match="a score is NaN"):
        torch.ops.lthfunc.largest(scores, torch.zeros(0, dtype=torch.int64), torch.empty(7, dtype=torch.int64))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("rows", "columns", "density"), [(30, 700, 0.3), (700, 30, 0.9), (5, 4, 0.0), (1, 9, 1.0)])
def test_lists_of_a_matrix_are_those_of_its_entries(rows: int, columns: int, density: float, transposed: bool) -> None:
    build.load_kernels()
    positions = (torch.rand(rows * columns, generator=torch.Generator().manual_seed(1)) < density).nonzero().flatten()
    row, column = positions // columns, positions % columns
    lists, read, whose = (columns, column, row) if transposed else (rows, row, column)
    addresses = torch.arange(rows if transposed else columns) * 3 + 1
    which = torch.arange(len(positions)) if transposed else None
    blocks = blocks_of(whose, len(addresses), lists, 256)
    expected = lists_of(Entries(lists, read, addresses[whose], which), blocks)
    found = matrix_lists((rows, columns), addresses, 256, len(positions), transposed=transposed)
    assert (found.rows, found.blocks) == expected[:2]
    starts, offsets, numbers = found.write(positions, torch.empty(sum(found.lengths), dtype=torch.int32)).split(
        found.lengths
    )
    assert starts.tolist() == expected.starts.tolist()
    assert offsets.tolist() == expected.offsets.tolist()
    assert numbers.tolist() == ([] if expected.which is None else expected.which.tolist())
    if len(positions) > 1:
        with pytest.raises(ValueError, match="places must rise"):
            found.write(positions.flip(0), torch.empty(sum(found.lengths), dtype=torch.int32))
        with pytest.raises(ValueError, match="lists takes"):
            found.write(positions, torch.empty(3, dtype=torch.int32))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", ["gradual", "granet", "mest", "srigl"])
def test_masks_of_methods_change_on_survivors_to_the_bits_of_dense_trees(
    method: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {} if optimizer == "adam" else {"momentum": 0.9}
    plan = plan_for(
        method, MODEL, images(), steps=12, eval_every=6, batch_size=8, engine="sparse", update_every=2, density=0.3,
        optimizer=optimizer, **more,
    )  # fmt: skip
    (updates,) = plan.updates
    starts = [lf.init(MODEL, seed) if method in ("gradual", "granet") else ticket(seed, MODEL) for seed in (0, 1)]
    theirs = fits(plan.trainer, updates._replace(exchange=None), starts=starts)
    monkeypatch.setattr(TrainingSession, "change_to", lambda *given: pytest.fail("dense trees were made"))
    for mine, other in zip(fits(plan.trainer, updates, starts=starts), theirs, strict=True):
        assert same(mine, other)
        assert [each.step for each in mine.changes] == list(updates.steps)
        assert sum(each.exchanged > 0 for each in mine.changes) >= 2
        assert any(layer.grown for each in mine.changes for layer in each.layers.values()) == (method != "gradual")


@pytest.mark.parametrize(
    ("given", "alone"),
    [
        ({}, True), ({"min_layer_weights": 11}, True), ({"allocate": "layerwise", "layer_rate": {"7.*": 0.1}}, True),
        ({"allocate": "uniform"}, False), ({"allocate": "lamp"}, False), ({"structure": "per-output"}, False),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("method", ["gradual", "granet"])
def test_prunings_by_magnitude_look_at_survivors_alone(method: str, given: dict[str, Any], alone: bool) -> None:
    """To the bits of dense trees; of equal weights the first remain. GraNet asks for the network to score growth."""
    if method == "granet" and "structure" in given:
        pytest.skip("single weights are a part of it")
    plan = plan_for(
        method, MODEL, images(), steps=12, eval_every=6, batch_size=8, engine="sparse", update_every=2, density=0.3,
        **given,
    )  # fmt: skip
    (updates,) = plan.updates
    start = lf.init(MODEL, 3)
    coarse = {name: (leaf * 20).round() / 20 for name, leaf in start.params.items()}
    starts = [start._replace(params=coarse), lf.init(MODEL, 4)]
    trainer = lf.make_trainer(MODEL, images(), optimizer=lf.sgd(1e-9), batch_size=8, engine=lf.sparse_engine)
    asked, kinds = list[int](), set[Any]()

    def exchange(network: Any, now: UpdateContext) -> Any:
        def noted() -> Any:
            asked.append(now.step)
            return network()

        assert updates.exchange is not None
        found = updates.exchange(noted, now)
        kinds.add(type(found))
        return found

    theirs = fits(trainer, updates._replace(exchange=None), starts=starts)
    for mine, other in zip(fits(trainer, updates._replace(exchange=exchange), starts=starts), theirs, strict=True):
        assert same(mine, other)
    sizes = theirs[0].state.params["5.weight"].abs()[theirs[0].state.masks["5.weight"]]
    assert sizes.unique().numel() < len(sizes) / 2, "many were equal"
    assert bool(asked) == (method == "granet" or not alone)
    assert kinds == {SurvivorPruning if alone else lf.NewMasks}


def test_masks_that_do_not_fit_are_left_to_dense_trees() -> None:
    masks = ticket(0, MODEL).masks
    shapes = {name: mask.shape for name, mask in masks.items()}
    assert can_exchange(lf.NewMasks(masks, masks), shapes)
    name, mask = next(iter(masks.items()))
    others = (
        {**masks, name: mask.float()},
        {**masks, name: mask[1:]},
        {each: masks[each] for each in masks if each != name},
    )
    for other in others:
        assert not can_exchange(lf.NewMasks(masks, other), shapes)
        assert not can_exchange(lf.NewMasks(other, masks), shapes)
    scores, pruning = {each: mask.float() for each, mask in masks.items()}, lf.prune_survivors(0.2)
    assert can_exchange(pruning._replace(then=(scores, 0.3)), shapes)
    for then in ((masks, 0.3), (scores, 1.1), ({name: scores[name]}, 0.3)):
        assert not can_exchange(pruning._replace(then=then), shapes)


def test_no_dense_moments_lie_beside_survivors() -> None:
    """Between updates of masks weights alone are dense, at the start and where the network was best."""
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(72, 31), nn.ReLU(), nn.Linear(31, 3)))
    found = {True: 0, False: 0}
    for survivors in (True, False):
        making: Any = lf.sparse_engine if survivors else "eager"
        trainer = lf.make_trainer(model, images(), optimizer=lf.adam(0.01), batch_size=8, engine=making)

        def seen(step: int, point: Any, survivors: bool = survivors) -> None:
            if step >= 5 and point is None:
                alive = [each for each in gc.get_objects() if type(each) is Tensor and each.shape == (31, 72)]
                found[survivors] = max(found[survivors], sum(each.is_floating_point() for each in alive))

        start = ticket(0, model)
        lf.fit(trainer, start, seed=0, until=12, eval_every=3, updates=updates_of(trainer, "random"), observe=seen)
    assert found[True] <= 4
    assert found[False] >= 8  # mean and variance, now and at the last look


@pytest.mark.parametrize("share", [1.2, float("nan")])
def test_a_share_out_of_range_is_refused_as_on_dense_trees(share: float) -> None:
    trainer = lf.make_trainer(MODEL, images(), optimizer=lf.sgd(0.05), batch_size=8, engine=lf.sparse_engine)
    with pytest.raises(UserError, match="drop_fraction"):
        fits(trainer, exchanges(trainer, CHANGED, growth_of("random"), lambda step: share))


@pytest.mark.parametrize("given", [3, (lf.random_growth(0),), ("random", 0.3), (lf.random_growth(0), "0.3")])
def test_an_exchange_that_gives_something_else_is_refused(given: Any) -> None:
    trainer = lf.make_trainer(MODEL, images(), optimizer=lf.sgd(0.05), batch_size=8, engine=lf.sparse_engine)
    updates = exchanges(trainer, CHANGED, growth_of("random"), lambda step: 0.3)
    with pytest.raises(UserError, match=r"updates: exchange: invalid value .* \(expected \(growth, fraction\), New"):
        fits(trainer, updates._replace(exchange=lambda network, now: given))
