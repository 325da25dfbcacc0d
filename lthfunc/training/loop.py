"""The loop: many steps, evaluations among them, and the params that validation would choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import NamedTuple

import torch

from lthfunc.errors import UserError
from lthfunc.training.batches import Augment, batches, steps_per_epoch
from lthfunc.training.compiling import compiled, unguarded
from lthfunc.training.evaluation import Quality, evaluate
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.steps import (
    EvalStep,
    Loss,
    TrainStep,
    boolean_masks,
    cross_entropy,
    floating_masks,
    make_eval_step,
    make_train_step,
    with_optimizer,
)
from lthfunc.trees.fold import Transformation
from lthfunc.trees.model import Model
from lthfunc.trees.rng import key
from lthfunc.trees.types import Buffers, Dataset, Params, TrainState


class Trainer(NamedTuple):
    """What training needs besides a state and a seed; made once, used for every round and control."""

    data: Dataset
    optimizer: Optimizer
    batch_size: int
    step: TrainStep
    eval_step: EvalStep
    compiled: bool
    augment: Augment | None


class Point(NamedTuple):
    """A point of a learning curve. train_loss: the mean over the steps since the point before (NaN at the first)."""

    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float


class Chosen(NamedTuple):
    """The network at the early-stopping step: the one with the least validation loss."""

    point: Point
    params: Params
    buffers: Buffers


class Fit(NamedTuple):
    """A finished training: the last state, what validation chose, and the curve."""

    state: TrainState
    chosen: Chosen
    curve: tuple[Point, ...]


#: Told the number of the step just taken and, after an evaluation, the new point of the curve.
Observer = Callable[[int, Point | None], None]


def make_trainer(
    model: Model,
    data: Dataset,
    *,
    optimizer: Optimizer,
    batch_size: int = 60,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    compile: bool = False,
) -> Trainer:
    """Put a model, its data and an optimiser together. `compile` pays off from some 10,000 small steps on."""
    steps_per_epoch(len(data.train.x), batch_size)  # an impossible batch size fails here, before any training
    step = make_train_step(model, loss, optimizer)
    return Trainer(
        data=data,
        optimizer=optimizer,
        batch_size=batch_size,
        step=compiled(step) if compile else step,
        eval_step=make_eval_step(model, loss),
        compiled=compile,
        augment=augment,
    )


def take_steps(
    trainer: Trainer, state: TrainState, *, seed: int, until: int, observe: Observer | None = None
) -> tuple[TrainState, float]:
    """Train from `state.step` to step `until`; returns the new state and the mean training loss.

    Pure: `state` is not changed, and the result depends on the arguments alone, random layers included.
    """
    start = int(state.step)
    state = floating_masks(with_optimizer(state, trainer.optimizer))
    losses = []
    with torch.no_grad(), _seeded(key(seed, "layers", start), state.step.device):
        supply = batches(trainer.data.train, trainer.batch_size, seed, start, until, trainer.augment)
        numbered = enumerate(supply, start + 1)
        # The first step may compile; from the second on the model and all shapes are the same.
        for few, context in ((1, nullcontext()), (None, unguarded() if trainer.compiled else nullcontext())):
            with context:
                for number, batch in islice(numbered, few):
                    state, metrics = trainer.step(state, batch)
                    losses.append(metrics["loss"])
                    if observe is not None:
                        observe(number, None)
    mean = float(torch.stack(losses).double().mean()) if losses else math.nan
    return boolean_masks(state), mean


def fit(
    trainer: Trainer,
    state: TrainState,
    *,
    seed: int,
    until: int,
    eval_every: int,
    observe: Observer | None = None,
    so_far: Fit | None = None,
) -> Fit:
    """Train to step `until`, measuring the validation split at the start, every `eval_every` steps and at the end.

    `so_far` continues a fit that stopped at `state`: its curve and choice go on.

    Raises UserError where the state has no step left to take, or the loss is no longer finite.
    """
    step = int(state.step)
    _check_steps_left(step, until)
    if so_far is None:
        point = _measure(trainer, state, math.nan)
        so_far = Fit(state, Chosen(point, state.params, state.buffers), (point,))
    chosen, curve = so_far.chosen, so_far.curve
    while step < until:
        stop = min(until, step - step % eval_every + eval_every)
        state, loss = take_steps(trainer, state, seed=seed, until=stop, observe=observe)
        step = stop
        if not math.isfinite(loss):
            raise UserError(f"training diverged before step {step} (loss {loss}); a smaller --lr may help")
        point = _measure(trainer, state, loss)
        curve = (*curve, point)
        if point.val_loss < chosen.point.val_loss:
            chosen = Chosen(point, state.params, state.buffers)
        if observe is not None:
            observe(step, point)
    return Fit(state, chosen, curve)


def train(
    model: Model,
    data: Dataset,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int = 60,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    seed: int = 0,
    compile: bool = False,
    observe: Observer | None = None,
) -> Transformation:
    """Training as a transformation TrainState -> TrainState, to compose: it goes on to step `steps`."""
    trainer = make_trainer(
        model, data, optimizer=optimizer, batch_size=batch_size, loss=loss, augment=augment, compile=compile
    )

    def transformation(state: TrainState) -> TrainState:
        _check_steps_left(int(state.step), steps)
        return take_steps(trainer, state, seed=seed, until=steps, observe=observe)[0]

    return transformation


def accuracy_on(model: Model, state: TrainState, data: Dataset, split: str = "test") -> float:
    """Accuracy of a state's network on a split (`train`, `val` or `test`), in [0, 1]."""
    return evaluate(make_eval_step(model), state.params, state.buffers, getattr(data, split)).accuracy


def _check_steps_left(step: int, until: int) -> None:
    if step >= until:
        raise UserError(f"steps: the state is already at step {step} of {until}; rewind or fine-tune first")


def _measure(trainer: Trainer, state: TrainState, train_loss: float) -> Point:
    quality: Quality = evaluate(trainer.eval_step, state.params, state.buffers, trainer.data.val)
    return Point(int(state.step), train_loss, quality.loss, quality.accuracy)


@contextmanager
def _seeded(number: int, device: torch.device) -> Iterator[None]:
    """Random layers (dropout, say) draw from torch's global generator: seed it, and put it back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        yield
