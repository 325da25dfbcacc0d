"""What waits while trainings take their steps, a start, an anchor, a network pruned before, is there on survivors."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import Plan, Task, rounds
from lthfunc.experiments.plan import prepare
from lthfunc.experiments.resolve import resolved
from lthfunc.experiments.rewinding_and_controls import Drawn, anchor_at_rest, made_anchor
from lthfunc.experiments.trainings import train_together
from lthfunc.runs.folder import PRUNE, create, read_run
from lthfunc.scheduling.execute import execute
from lthfunc.scheduling.queue import Execution, Watcher
from lthfunc.sparse.kernels import build
from lthfunc.training import loop
from lthfunc.training.results import Point, Stopped
from lthfunc.trees.ops import layer_counts
from lthfunc.trees.packed_states import PackedState, at_rest, counts_of, dense_state

needs_kernels = pytest.mark.skipif(build.why_no_kernels() is not None, reason=str(build.why_no_kernels()))
#: Sides that no batch, buffer or other layer has: what is as large is a leaf of the network, or its mask.
INPUTS, HIDDEN = 64, 331
STEPS = 12


def network(shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))


def dense_leaves() -> dict[int, Tensor]:
    """All that is there of the first layer's size, by where it lies; views of one memory count once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules of torch that warn when they are looked at
        tensors = [each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter)]
    whole = [each for each in tensors if each.numel() == INPUTS * HIDDEN]
    return {each.untyped_storage().data_ptr(): each for each in whole}


class Looking(Watcher):
    """Notes at each evaluation of a pruned round which dense leaves were made since the run began."""

    def __init__(self, stop_at: int = 10**9) -> None:
        self.found: dict[tuple[int, int, int], list[str]] = {}
        self.stop_at, self.stopped = stop_at, False
        self._before = dense_leaves()  # the module's, and what earlier tests left

    def step(self, task: Task, number: int, point: Point | None) -> None:
        self.stopped = self.stopped or (task.number > 0 and number >= self.stop_at)
        if point is not None and task.number:
            new = [str(leaf.dtype) for where, leaf in dense_leaves().items() if where not in self._before]
            self.found[task.seed, task.number, number] = sorted(new)


def looked_at(config: Config, folder: Path, **how: int) -> Looking:
    config, plan, *_ = prepare(resolved(config))
    watcher = Looking(**how)
    if not folder.exists():
        folder.mkdir()
        create(folder, config, PRUNE, data=plan.trainer.data)
    execute(Execution(config, plan, folder, lambda: watcher.stopped, watcher), read_run(folder)[2], 1)
    return watcher


def settings_of(**changes: Any) -> Config:
    return Config(
        arch="test_at_rest:network", engine="sparse", steps=STEPS, eval_every=4, checkpoint_every="3", threads=1,
        batch_size=40, **changes,
    )  # fmt: skip


RUNS: dict[str, Any] = {
    "set": {"method": "set", "densities": "0.1", "update_every": 3, "replicates": 2},
    "rigl": {"method": "rigl", "densities": "0.1", "update_every": 3},
    "snip": {"method": "snip", "densities": "0.3,0.1", "replicates": 2},
    "imp": {"rounds": 2, "rate": 0.7},
}


@needs_kernels
@pytest.mark.parametrize("name", RUNS)
def test_no_dense_leaf_is_there_while_a_pruned_round_trains(name: str, tmp_path: Path) -> None:
    """Neither its own, nor another round's, nor another seed's."""
    found = looked_at(settings_of(**RUNS[name]), tmp_path / "run").found
    assert len(found) == {"set": 6, "rigl": 3, "snip": 12, "imp": 6}[name]
    assert not any(found.values())


@needs_kernels
@pytest.mark.parametrize("name", ["rigl", "imp"])
def test_nor_where_a_run_goes_on(name: str, tmp_path: Path) -> None:
    config = settings_of(**RUNS[name])
    with pytest.raises(Stopped):
        looked_at(config, tmp_path / "run", stop_at=7)
    found = looked_at(config, tmp_path / "run").found
    steps = [(1, 8), (1, 12)] + [(2, 4), (2, 8), (2, 12)] * (name == "imp")  # from its checkpoint on
    assert found == {(0, number, step): [] for number, step in steps}


@needs_kernels
def test_a_later_anchor_alone_stays(tmp_path: Path) -> None:
    """Its weights and its full masks, without the moments of the training that passed it."""
    found = looked_at(settings_of(**RUNS["imp"], rewind="step:4"), tmp_path / "run").found
    assert len(found) == 4
    assert set(map(tuple, found.values())) == {("torch.bool", "torch.float32")}


@needs_kernels
def test_memory_is_returned_where_survivors_alone_are_kept(
    few_digits: lf.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[int] = []
    monkeypatch.setattr(loop, "return_freed_memory", freed.append)
    model = lf.from_module(network())
    for engine in (lf.sparse_engine, "eager"):
        trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=40, engine=engine)
        lf.fit(trainer, lf.prune(density=0.1)(lf.init(model)), seed=0, until=2, eval_every=2)
    assert freed == [INPUTS * HIDDEN + HIDDEN * 10, 0]


@given(seed=st.integers(0, 99), density=st.sampled_from([0.0, 0.1, 0.3, 0.34, 0.5, 1.0]))
@settings(max_examples=30, deadline=None)
def test_states_at_rest_have_their_bits(seed: int, density: float) -> None:
    model = lf.from_module(network())
    masks = {name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < density
             for name, mask in lf.init(model).masks.items()}  # fmt: skip
    state = lf.init(model, seed)
    state = lf.with_optimizer(state._replace(params=lf.apply_masks(state.params, masks), masks=masks), lf.adam(0.1))
    rest = at_rest(state)
    assert isinstance(rest, PackedState) == (density < 1 / 3)
    assert lf.same_bits(dense_state(rest), state)
    assert counts_of(rest) == layer_counts(masks)


def drawn_from_torch(module: nn.Module, params: lf.Params, seed: int) -> lf.Params:
    """As an initialiser of one's own may do, which is not the same function of the seed twice."""
    return {name: torch.randn_like(leaf) for name, leaf in params.items()}


def test_an_anchor_is_drawn_again_where_that_gives_its_bits() -> None:
    model, other = lf.from_module(network()), lf.from_module(network(), init=drawn_from_torch)
    start = lf.init(model, 3)
    assert anchor_at_rest(start, model, 3) == Drawn(3)
    assert lf.same_bits(made_anchor(Drawn(3), model, "cpu"), start)
    pruned = start._replace(masks=lf.prune(density=0.5)(start).masks)  # as a run's folder gives it
    assert anchor_at_rest(pruned, model, 3) == Drawn(3)
    bias = {**start.params, "1.bias": start.params["1.bias"] - 0.0}
    bias["1.bias"] = -bias["1.bias"]  # -0.0
    for kept, which in (
        (start._replace(step=start.step + 1), model), (start._replace(params=bias), model), (lf.init(model, 4), model),
        (lf.init(other, 3), other),
    ):  # fmt: skip
        assert anchor_at_rest(kept, which, 3) is kept
        assert made_anchor(kept, which, "cpu") is kept


def test_rounds_rewind_to_what_an_impure_initialiser_drew_first(few_digits: lf.Dataset) -> None:
    model = lf.from_module(network(), init=drawn_from_torch)
    trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=40)
    plan = Plan(model, trainer, steps=2, eval_every=1, rounds=2, rate=0.8)
    first, *others = lf.iterative(plan, 0)
    assert len(others) == 2
    for each in others:
        assert lf.same_bits(each.start.params, lf.apply_masks(first.start.params, each.start.masks))
        assert lf.same_bits(each.anchor.params, first.start.params)


def test_tasks_are_small(few_digits: lf.Dataset) -> None:
    """As worker processes are sent them."""
    model = lf.from_module(network())
    trainer = lf.make_trainer(model, few_digits, optimizer=lf.sgd(0.1), batch_size=40)
    plan = Plan(model, trainer, steps=2, eval_every=1, rounds=1, rate=0.95)
    schedule = rounds(plan, 0)
    (sparse,) = schedule.send(train_together(plan, next(schedule)))
    assert isinstance(sparse.start, PackedState)
    assert sparse.anchor == Drawn(0)


@needs_kernels
@pytest.mark.long
@pytest.mark.slow
def test_a_sparse_run_has_less_memory_than_it_was_prepared_in(tmp_path: Path) -> None:
    """Its weights are 112 MiB, and dense trees of them seven times that, at least, while it is prepared."""
    command = [sys.executable, "-m", "benchmarks.memory", "--method", "set", "--json", str(tmp_path / "m.json")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (record,) = json.loads((tmp_path / "m.json").read_text())["records"]
    assert record["method"] == "set"
    assert record["mib"]["at an evaluation"] < record["mib"]["before"] - 7 * 112
