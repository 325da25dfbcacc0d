"""Trainings that stop anywhere and go on from their checkpoint, to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DroppingNet, NormedNet
from network_engines import interpreted
from test_engines import needs_compiler
from torch import nn

import lthfunc as lf
from lthfunc.catalog.pruning import REWINDINGS
from lthfunc.errors import UserError
from lthfunc.experiments.config import Config, parse_interval
from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.experiments.rewinding_and_controls import start_of
from lthfunc.experiments.trainings import train_together
from lthfunc.runs.checkpoints import checkpoints, is_whole, load_checkpoint, save_checkpoint, step_of
from lthfunc.scheduling import checkpointing
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution
from lthfunc.training.batches import batches
from lthfunc.training.finiteness import are_finite
from lthfunc.training.packed_fits import dense_fit
from lthfunc.training.results import Stopped
from lthfunc.trees.types import Dataset

NETWORKS: dict[str, type[nn.Module]] = {"normed": NormedNet, "dropping": DroppingNet}
OPTIMIZERS: dict[str, lf.Optimizer] = {
    "adam": lf.adam(lf.cosine(1e-3, 40), weight_decay=1e-2),
    "sgd": lf.sgd(lf.warmup(lf.constant(0.05), 10), momentum=0.9, nesterov=True),
    "muon": lf.muon(0.02, 0.9),
    "chain": lf.chain(
        *(lf.accumulate(2), lf.clip_by_global_norm(0.5)),
        lf.adamw(lf.cosine(1e-3, 40), weight_decay=0.1, decays=lf.is_matrix),
        lf.ema(0.9),
    ),
    "sam": lf.chain(lf.sam(0.1), lf.sgd(0.05, momentum=0.9), lf.lookahead(4), lf.swa(8, 3)),
}


def plan_of(data: Dataset, network: str, engine: Any, optimizer: str, anchor_step: int = 0) -> Plan:
    model = lf.from_module(NETWORKS[network]())
    trainer = lf.make_trainer(model, data, optimizer=OPTIMIZERS[optimizer], batch_size=24, engine=engine)
    return Plan(model, trainer, steps=37, eval_every=10, rewind=start_of(REWINDINGS, "init"), anchor_step=anchor_step)


def dense(plan: Plan, seed: int = 3) -> Task:
    return Task(seed, 0, TICKET, lf.init(plan.model, seed), None)


def pruned(plan: Plan, seed: int = 3) -> Task:
    start = lf.init(plan.model, seed)
    return Task(seed, 1, TICKET, lf.prune(fraction=0.7)(start), start)


class StopAt:
    """Asks to stop when so many steps were taken."""

    def __init__(self, step: int) -> None:
        self.step, self.seen = step, 0

    def observe(self, number: int, point: Any) -> None:
        self.seen = number

    def __call__(self) -> bool:
        return self.seen >= self.step


def stopped(plan: Plan, task: Task, folder: Path, step: int) -> None:
    stop = StopAt(step)
    with pytest.raises(Stopped):
        train_with_checkpoints(Execution(Config(checkpoint_every="never"), plan, folder, stop), [task], stop.observe)


#: An optimiser that mixes weights is not for the sparse engine, dropout not for compacted networks.
CASES = [
    *(("eager", network, optimizer) for network in NETWORKS for optimizer in ("adam", "sgd", "muon")),
    *(("sparse", network, optimizer) for network in NETWORKS for optimizer in ("adam", "sgd")),
    *(("compact", "normed", optimizer) for optimizer in ("adam", "sgd")),
    *((engine, "normed", "chain") for engine in ("eager", "sparse", "compact")),
    *((engine, "dropping", "sam") for engine in ("eager", "sparse")),
]


@pytest.mark.parametrize(("engine", "network", "optimizer"), CASES)
def test_a_training_stopped_anywhere_ends_in_the_same_bits(
    few_digits: Dataset, tmp_path: Path, engine: str, network: str, optimizer: str
) -> None:
    making = {"eager": "eager", "sparse": lf.sparse_engine, "compact": lf.compact_engine("eager")}[engine]
    plan = plan_of(few_digits, network, making, optimizer)
    task = pruned(plan)
    (whole,) = train_together(plan, [task])
    for number, stops in enumerate([[1], [10], [9, 11, 30], [36]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for step in stops:
            stopped(plan, task, folder, step)
        (again,), _ = train_with_checkpoints(Execution(Config(), plan, folder), [task])
        assert repr(again.fit.curve) == repr(whole.fit.curve)
        assert lf.same_bits(again.fit.state, whole.fit.state)
        assert lf.same_bits(again.fit.best[1:], whole.fit.best[1:])
        assert again.test == whole.test
        assert again.fit.since is None


@pytest.mark.parametrize("step", [3, 12, 13, 20])
def test_the_dense_training_keeps_the_anchor_that_it_has_found(few_digits: Dataset, tmp_path: Path, step: int) -> None:
    plan = plan_of(few_digits, "dropping", "eager", "adam", anchor_step=12)
    task = dense(plan)
    (whole,) = train_together(plan, [task])
    stopped(plan, task, tmp_path, step)
    kept = load_checkpoint(tmp_path / "seed3" / "round00", task.start, plan.trainer.work.optimizer)
    assert kept is not None
    assert (kept.progress.anchor is not None) == (step > 12)
    (again,), _ = train_with_checkpoints(Execution(Config(), plan, tmp_path), [task])
    assert lf.same_bits(again.anchor[:3], whole.anchor[:3])
    assert int(again.anchor.step) == int(whole.anchor.step) == 12
    assert lf.same_bits(again.fit.state, whole.fit.state)
    assert repr(again.fit.curve) == repr(whole.fit.curve)


@needs_compiler
def test_the_compiled_engine_goes_on_within_a_round(few_digits: Dataset, tmp_path: Path) -> None:
    plan = plan_of(few_digits, "dropping", interpreted, "adam")
    task = pruned(plan)
    (whole,) = train_together(plan, [task])
    for step in (7, 23):
        stopped(plan, task, tmp_path, step)
    (again,), _ = train_with_checkpoints(Execution(Config(), plan, tmp_path), [task])
    assert lf.same_bits(again.fit.state, whole.fit.state)
    assert repr(again.fit.curve) == repr(whole.fit.curve)


def test_checkpoints_at_an_interval_change_nothing_and_replace_each_other(
    few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(few_digits, "normed", "eager", "sgd")
    task = pruned(plan)
    (whole,) = train_together(plan, [task])
    written: list[Path] = []
    monkeypatch.setattr(checkpointing, "save_checkpoint", lambda *given: written.append(save_checkpoint(*given)))
    (kept,), _ = train_with_checkpoints(Execution(Config(checkpoint_every="5"), plan, tmp_path), [task])
    assert [step_of(path) for path in written] == [5, 10, 15, 20, 25, 30, 35]
    assert [step_of(path) for path in checkpoints(tmp_path / "seed3" / "round01")] == [35]
    assert lf.same_bits(kept.fit.state, whole.fit.state)


def test_a_damaged_checkpoint_is_passed_over(few_digits: Dataset, tmp_path: Path) -> None:
    plan = plan_of(few_digits, "normed", "eager", "sgd")
    task = pruned(plan)
    stopped(plan, task, tmp_path, 20)
    (path,) = checkpoints(tmp_path / "seed3" / "round01")
    assert is_whole(path)
    payload = bytearray(path.read_bytes())
    for place in range(0, len(payload), max(1, len(payload) // 50)):
        payload[place] ^= 1
        path.write_bytes(payload)
        assert not is_whole(path)
        assert load_checkpoint(path.parent, task.start, plan.trainer.work.optimizer) is None
        payload[place] ^= 1
    path.write_bytes(payload)
    assert load_checkpoint(path.parent, task.start, plan.trainer.work.optimizer) is not None
    other = plan_of(few_digits, "dropping", "eager", "sgd")
    assert load_checkpoint(path.parent, pruned(other).start, other.trainer.work.optimizer) is None


def test_intervals_are_steps_or_seconds() -> None:
    assert parse_interval("500") == (500, None)
    assert parse_interval("30s") == (None, 30.0)
    assert parse_interval("never") == (None, None)
    for text in ("", "0", "-1", "1e9", "30 s", "nan", "9" * 40):
        with pytest.raises(UserError, match="--checkpoint-every"):
            parse_interval(text)


class Poisoned(nn.Module):
    """A network whose inputs, where a pixel says so, make its loss or its gradient not finite."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        out: torch.Tensor = self.fc(x)
        steep = torch.sqrt(torch.where(x[:, :1] == 100, out - out.detach(), 1.0))  # there zero, of infinite slope
        return out + steep + torch.where(x[:, :1] == 200, torch.inf, 0.0)


def poisoned(data: Dataset, gradient: list[int], loss: list[int]) -> Dataset:
    """Training examples whose gradient is not finite, though their loss is; and some whose loss isn't."""
    x = data.train.x.clone()
    x[gradient, 0, 0, 0], x[loss, 0, 0, 0] = 100, 200
    return data._replace(train=data.train._replace(x=x), scale=None)


@pytest.mark.parametrize("engine", ["eager", "sparse"])
def test_a_step_that_is_not_finite_ends_a_training_at_the_last_good_state(
    few_digits: Dataset, tmp_path: Path, engine: str
) -> None:
    data = few_digits if engine == "sparse" else poisoned(few_digits, [17], [])
    network: nn.Module = DroppingNet() if engine == "sparse" else Poisoned()
    rate = lf.stepwise(1e-2, (20,), 1e38) if engine == "sparse" else lf.constant(1e-2)
    model = lf.from_module(network)
    trainer = lf.make_trainer(
        model, data, optimizer=lf.sgd(rate), batch_size=24, engine=lf.sparse_engine if engine == "sparse" else "eager"
    )
    plan = Plan(model, trainer, steps=37, eval_every=10)
    task = pruned(plan)
    with pytest.raises(
        UserError, match=r"training diverged: the (loss .*|gradient) of step (\d+) is not finite"
    ) as error:
        train_with_checkpoints(Execution(Config(), plan, tmp_path), [task])
    assert "learning rate" in str(error.value)
    kept = load_checkpoint(tmp_path / "seed3" / "round01", task.start, plan.trainer.work.optimizer)
    assert kept is not None
    state, since = dense_fit(kept.progress.fit).state, kept.progress.fit.since
    assert since is not None
    assert are_finite([state], [since]) == [True]
    assert f"of step {int(state.step) + 1} is" in str(error.value)


def test_skipping_leaves_such_steps_out_wherever_it_was_interrupted(few_digits: Dataset, tmp_path: Path) -> None:
    data = poisoned(few_digits, [17], [100])
    model = lf.from_module(Poisoned())
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(1e-2, momentum=0.9), batch_size=24, on_nonfinite="skip")
    plan = Plan(model, trainer, steps=37, eval_every=10)
    task = pruned(plan)
    (whole,) = train_together(plan, [task])
    assert all(bool(leaf.isfinite().all()) for leaf in whole.fit.state.params.values())
    assert int(whole.fit.state.step) == 37
    # By hand: the same batches, without those that the two examples are in.
    assert isinstance(task.start, lf.TrainState)
    state = lf.with_optimizer(task.start, trainer.work.optimizer)
    step = lf.make_train_step(model, lf.cross_entropy, trainer.work.optimizer)
    skipped = 0
    for batch in batches(data.train, 24, 3, 0, 37):
        if bool((batch[0].flatten(1)[:, 0] > 50).any()):
            state, skipped = state._replace(step=state.step + 1), skipped + 1
        else:
            state, _ = step(state, batch)
    assert skipped >= 4
    assert lf.same_bits(state.params, whole.fit.state.params)
    for number in (5, 11, 24):
        stopped(plan, task, tmp_path, number)
    (again,), _ = train_with_checkpoints(Execution(Config(), plan, tmp_path), [task])
    assert lf.same_bits(again.fit.state, whole.fit.state)
    assert repr(again.fit.curve) == repr(whole.fit.curve)
    together = train_together(plan, [task, task._replace(seed=4)])
    assert all(bool(leaf.isfinite().all()) for each in together for leaf in each.fit.state.params.values())


def test_skipping_draws_as_every_training_does(few_digits: Dataset) -> None:
    """From the seed alone; the global generator stands where it stood."""
    data = poisoned(few_digits, [17], [100])
    model = lf.from_module(nn.Sequential(Poisoned(), nn.Tanh(), nn.Dropout(0.3), nn.Linear(10, 10)))
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(1e-2, momentum=0.9), batch_size=24, on_nonfinite="skip")
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(lf.fit(trainer, lf.init(model), seed=3, until=24, eval_every=8).state.params)
        assert torch.equal(torch.get_rng_state(), before)
    assert found[0]["0.fc.weight"].isfinite().all()
    assert lf.same_bits(*found)


def test_nothing_but_bad_steps_ends_a_training_whatever_was_asked(few_digits: Dataset) -> None:
    data = poisoned(few_digits, list(range(200)), list(range(200, 240)))
    model = lf.from_module(Poisoned())
    trainer = lf.make_trainer(model, data, optimizer=lf.sgd(1e-2), batch_size=24, on_nonfinite="skip")
    plan = Plan(model, trainer, steps=10, eval_every=5)
    with pytest.raises(UserError, match="training diverged"):
        train_together(plan, [pruned(plan)])
