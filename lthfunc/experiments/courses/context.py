"""What all methods share: the network, its training, and the final density."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.gradient_scores import LossOfParams
from lthfunc.sparsify.scores import Score, magnitude
from lthfunc.sparsify.transforms import prune
from lthfunc.training.batches import sample_batches
from lthfunc.training.evaluation import Evaluation
from lthfunc.training.loss_of_params import loss_of
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.schedules import Schedule
from lthfunc.training.trainer import Trainer, measure
from lthfunc.trees.model import Model, init
from lthfunc.trees.ops import to_device
from lthfunc.trees.rng import key
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Batch, Ticket, TrainState

#: Default rounds of SynFlow (Tanaka et al. 2020, sec. 6).
SYNFLOW_ROUNDS = 100


class MethodContext(NamedTuple):
    """steps: of one training. rounds: of iterative methods. density: of the final network of every method.

    trainer_of: a trainer of another model on the same data (a reparametrised one), with an optimiser.
    cyclic: the trainer whose learning rate repeats its schedule several times in one training; None if a training has
    fewer steps than `cycles`.
    schedule: the trainer's learning rates, if known. synflow_rounds: rounds in which SynFlow prunes.
    """

    model: Model
    trainer: Trainer
    trainer_of: Callable[[Model, Optimizer], Trainer]
    cyclic: Trainer | None
    steps: int
    eval_every: int
    rounds: int
    density: float
    device: str
    schedule: Schedule | None = None
    synflow_rounds: int = SYNFLOW_ROUNDS
    cycles: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an input."""
        return self.trainer.data.shape


class Outcome(NamedTuple):
    """A method's result: the trained network that validation chose, and the training steps it took."""

    ticket: Ticket
    steps: int
    test: Evaluation


def start(context: MethodContext, seed: int) -> TrainState:
    """The dense network before training."""
    return init(context.model, seed, context.device)


def tested(context: MethodContext, ticket: Ticket, steps: int) -> Outcome:
    """Evaluate the network on the test set, once."""
    (quality,) = measure(context.trainer, [ticket], context.trainer.data.test)
    return Outcome(ticket, steps, quality)


def samples(context: MethodContext, seed: int, count: int, purpose: str) -> list[Batch]:
    """Batches of training examples to score with, scaled; the same for the same seed and purpose."""
    drawn = sample_batches(context.trainer.data, context.trainer.batch_size, count, key(seed, purpose))
    return to_device(drawn, context.device)


def loss(context: MethodContext, state: TrainState) -> LossOfParams:
    """The training loss as a function of params."""
    return loss_of(context.model, state.buffers, context.trainer.work.loss)


def pruned_to(context: MethodContext, allocate: Allocate = globally, score: Score = magnitude) -> Transformation:
    """Prune to the final density of all methods."""
    return prune(density=context.density, allocate=allocate, score=score)
