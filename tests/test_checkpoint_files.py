"""What is in a checkpoint's file: survivors alone; files of before are read."""

from __future__ import annotations

from pathlib import Path

from test_checkpoints import plan_of, pruned, stopped
from torch import nn

import lthfunc as lf
from lthfunc.experiments.config import Config
from lthfunc.experiments.iterative import TICKET, Plan, Task
from lthfunc.experiments.trainings import train_together
from lthfunc.runs.checkpoints import checkpoints, load_checkpoint, put_checkpoint
from lthfunc.runs.manifests import sum_of
from lthfunc.scheduling.checkpointing import train_with_checkpoints
from lthfunc.scheduling.queue import Execution
from lthfunc.trees.files import tree_bytes
from lthfunc.trees.types import Dataset


def test_checkpoints_hold_survivors_alone(few_digits: Dataset, tmp_path: Path) -> None:
    """Adam's moments and the network chosen so far among them, with one mask for all."""
    model = lf.from_module(nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10)))
    trainer = lf.make_trainer(model, few_digits, optimizer=lf.adam(1e-3), batch_size=24, engine=lf.sparse_engine)
    plan = Plan(model, trainer, steps=37, eval_every=10)
    start = lf.init(model, 3)
    task = Task(3, 1, TICKET, lf.prune(density=0.1)(start), start)
    stopped(plan, task, tmp_path, 20)
    (path,) = checkpoints(tmp_path / "seed3" / "round01")
    weights, biases = 300 * 64 + 10 * 300, 310
    numbers = 4 * 4 * (weights // 10 + biases) + weights // 8
    assert numbers < path.stat().st_size < numbers + 12_000  # the header, the generator and the learning rates


def test_checkpoints_of_dense_trees_are_read_as_well(few_digits: Dataset, tmp_path: Path) -> None:
    """As they were written before: an optimiser's leaves by number alone, nothing packed."""
    plan = plan_of(few_digits, "normed", lf.sparse_engine, "adam")
    task = pruned(plan)
    (whole,) = train_together(plan, [task])
    stopped(plan, task, tmp_path, 20)
    (path,) = checkpoints(tmp_path / "seed3" / "round01")
    tree, about = lf.load_tree(path)
    tree["opt"] = {number: next(iter(named.values())) for number, named in tree["opt"].items()}
    payload = tree_bytes(tree, {**about, "format": "lthfunc.checkpoint/1"})
    put_checkpoint(path.parent, f"checkpoint-000000020-{sum_of(payload).sha256}.safetensors", payload)
    assert load_checkpoint(path.parent, task.start, plan.trainer.work.optimizer) is not None
    (again,), _ = train_with_checkpoints(Execution(Config(), plan, tmp_path), [task])
    assert lf.same_bits(again.fit.state, whole.fit.state)
    assert lf.same_bits(again.fit.best[1:], whole.fit.best[1:])
