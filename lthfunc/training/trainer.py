"""What training needs besides a state and a seed, and the evaluation of networks by its engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import rank_batch_size
from lthfunc.errors import UserError
from lthfunc.tracebacks import function_name, is_library_function
from lthfunc.training.accumulation import parts_of_batch
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.engines.interface import Engine, Network, Work, device_of
from lthfunc.training.engines.table import Making, make_engine
from lthfunc.training.evaluation import Evaluation, averaged, from_means
from lthfunc.training.losses import Loss, Metric, accuracy, cross_entropy
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import Precision, matmul_precision
from lthfunc.training.step_check import check_step
from lthfunc.training.steps import Augment
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.model import Model
from lthfunc.trees.ops import scaled
from lthfunc.trees.side_effects import SideEffects, side_effects_of
from lthfunc.trees.types import Dataset, Split

#: What to do about a step whose loss or gradient is not finite.
OnNonfinite = Literal["stop", "skip"]


class Trainer(NamedTuple):
    """What training needs besides a state and a seed; made once, used for every round, control and replicate.

    batch_size: examples in a step, in all of its parts. work: what the engine runs: the model, loss, optimiser and so
    on.
    """

    data: Dataset
    batch_size: int
    engine: Engine
    work: Work
    on_nonfinite: OnNonfinite = "stop"


@public
def make_trainer(
    model: Model,
    data: Dataset,
    *,
    optimizer: Optimizer,
    batch_size: int = 60,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    engine: Making = "eager",
    precision: Precision = "fp32",
    metric: Metric = accuracy,
    on_nonfinite: OnNonfinite = "stop",
    collectives: Collectives = SINGLE_RANK,
) -> Trainer:
    """Make a trainer of a model, its data and an optimiser; made once, it serves every round, control and replicate.

    batch_size: examples in a step, or in each part of it with `accumulate`. loss, metric: (outputs, targets) -> scalar.
    augment: (inputs, key) -> changed inputs. engine: "eager"; "compile", which pays off from some 3,000 small steps on;
    or a function that makes an engine (`sparse_engine`). precision: "fp32", "tf32" or "bf16". on_nonfinite: what to do
    about a step whose loss or gradient is not finite: "stop" ends a fit, "skip" leaves the step out. collectives:
    `lf.collectives()` for one training on all ranks of a process group; all ranks make the same calls, each takes its
    part of every batch, and all arrive at the same results. Returns the trainer. Raises UserError where a step on a few
    examples fails, with the line at fault.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> lf.make_trainer(lf.from_module(nn.Linear(4, 2)), data, optimizer=lf.adam(1e-3), batch_size=2).batch_size
    2
    """
    data = check_data(data)
    work = Work(model, loss, optimizer, data.scale, augment, precision, metric, collectives)
    return trainer_of(work, data, batch_size, engine, on_nonfinite)


def trainer_of(
    work: Work, data: Dataset, batch_size: int, engine: Making, on_nonfinite: OnNonfinite = "stop"
) -> Trainer:
    """`make_trainer`, given what its engine runs; the module's side effects are looked at here."""
    rank_batch_size(batch_size, work.collectives)
    batch_size *= parts_of_batch(work.optimizer)
    steps_per_epoch(data.examples, batch_size)  # an impossible batch size fails here, before any training
    work = work._replace(side_effects=side_effects_of(work.model, examples(data)))
    check_step(work, data, batch_size)
    made = make_engine(engine, work._replace(metric=averaged(work.metric)))
    return Trainer(data, batch_size, made, work, on_nonfinite)


def with_work(trainer: Trainer, work: Work, engine: Making) -> Trainer:
    """A trainer of another network or optimiser, with the same data and size of batches."""
    size = trainer.batch_size // parts_of_batch(work.optimizer)
    return trainer_of(work, trainer.data, size, engine, trainer.on_nonfinite)


def examples(data: Dataset, count: int = 2) -> Tensor:
    """The first training inputs, scaled."""
    return scaled(data.train.x[:count], data.scale)


def measure(trainer: Trainer, networks: Sequence[Network], split: Split) -> list[Evaluation]:
    """Loss and accuracy of some networks on a split, by the trainer's engine."""
    device = device_of(networks[0].params)
    with training_context(trainer), seeded_if_random(trainer.work.side_effects, device):
        found = trainer.engine.measure(networks, split)
    return checked_quality(from_means(found, trainer.work.metric), trainer.work.metric)


def checked_quality(found: list[Evaluation], metric: Metric) -> list[Evaluation]:
    """The evaluations. Raises UserError where a user's metric is NaN although the loss is finite."""
    missing = any(math.isnan(each.accuracy) and math.isfinite(each.loss) for each in found)
    if missing and not is_library_function(metric):
        raise UserError(f"metric: {function_name(metric)!r} returned NaN")
    return found


def seeded_if_random(side_effects: SideEffects, device: torch.device) -> AbstractContextManager[None]:
    """The context of an evaluation: a module that draws in evaluation mode draws the same numbers in each."""
    return seeded_generators(0, device) if side_effects.evaluates_randomly else nullcontext()


@contextmanager
def training_context(trainer: Trainer) -> Iterator[None]:
    """The context of steps and evaluations."""
    with torch.no_grad(), matmul_precision(trainer.work.precision):
        yield
