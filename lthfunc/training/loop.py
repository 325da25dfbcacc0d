"""The loop: many steps, evaluations among them, and the params that validation would choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from lthfunc.errors import UserError
from lthfunc.training.batches import steps_per_epoch
from lthfunc.training.engines.interface import Engine, Running, Tick, Work
from lthfunc.training.engines.table import Making, make_engine
from lthfunc.training.evaluation import Quality, evaluate
from lthfunc.training.feed import Feed
from lthfunc.training.losses import Loss, Metric, accuracy, cross_entropy
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import Precision, products
from lthfunc.training.steps import Augment, make_eval_step, on_stored, with_optimizer
from lthfunc.trees.fold import Transformation
from lthfunc.trees.model import Model
from lthfunc.trees.rng import key
from lthfunc.trees.types import Buffers, Dataset, Params, Split, TrainState


class Trainer(NamedTuple):
    """What training needs besides a state and a seed; made once, used for every round, control and replicate.

    loss: what is trained, and what scores that take gradients look at. metric: what is measured as accuracy.
    """

    data: Dataset
    optimizer: Optimizer
    batch_size: int
    engine: Engine
    precision: Precision
    loss: Loss = cross_entropy
    metric: Metric = accuracy


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
    engine: Making = "eager",
    precision: Precision = "fp32",
    metric: Metric = accuracy,
) -> Trainer:
    """Put a model, its data and an optimiser together.

    engine: "eager", "compile", which pays off from some 3,000 small steps on, or a function that makes one
    (`sparse_engine`).
    """
    steps_per_epoch(len(data.train.x), batch_size)  # an impossible batch size fails here, before any training
    work = Work(model, loss, optimizer, data.scale, augment, precision, metric)
    return Trainer(data, optimizer, batch_size, make_engine(engine, work), precision, loss, metric)


def take_steps(
    trainer: Trainer, state: TrainState, *, seed: int, until: int, observe: Observer | None = None
) -> tuple[TrainState, float]:
    """Train from `state.step` to step `until`; returns the new state and the mean training loss.

    Pure: `state` is not changed, and the result depends on the arguments alone, random layers included.
    """
    with _Training(trainer, [state], [seed], until, observe) as training:
        (loss,) = training.to(until)
        return training.running.states()[0], loss


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
    before = None if so_far is None else [so_far]
    return fit_together(
        trainer, [state], seeds=[seed], until=until, eval_every=eval_every, observe=observe, so_far=before
    )[0]


def fit_together(
    trainer: Trainer,
    states: Sequence[TrainState],
    *,
    seeds: Sequence[int],
    until: int,
    eval_every: int,
    observe: Observer | None = None,
    so_far: Sequence[Fit] | None = None,
) -> list[Fit]:
    """`fit` of several states at the same step, side by side as one vmapped program; a result for each.

    `observe` is told the first state's points.
    """
    step = int(states[0].step)
    _check_steps_left(step, until)
    if so_far is None:
        points = _measure(trainer, states, [math.nan] * len(states))
        so_far = [
            Fit(state, Chosen(point, state.params, state.buffers), (point,))
            for state, point in zip(states, points, strict=True)
        ]
    fits = list(so_far)
    with _Training(trainer, states, seeds, until, observe) as training:
        while step < until:
            step = min(until, step - step % eval_every + eval_every)
            losses = training.to(step)
            for seed, loss in zip(seeds, losses, strict=True):
                if not math.isfinite(loss):
                    who = f"seed {seed}: " if len(seeds) > 1 else ""
                    raise UserError(f"{who}training diverged before step {step} (loss {loss}); a smaller --lr may help")
            states = training.running.states()
            points = _measure(trainer, states, losses)
            fits = [_extended(*item) for item in zip(fits, states, points, strict=True)]
            if observe is not None:
                observe(step, points[0])
    return fits


def _extended(fit: Fit, state: TrainState, point: Point) -> Fit:
    better = point.val_loss < fit.chosen.point.val_loss
    chosen = Chosen(point, state.params, state.buffers) if better else fit.chosen
    return Fit(state, chosen, (*fit.curve, point))


class _Training:
    """Steps on a running loop, the feed ahead of them; a context, since a streamed feed has a thread."""

    running: Running

    def __init__(
        self,
        trainer: Trainer,
        states: Sequence[TrainState],
        seeds: Sequence[int],
        end: int,
        observe: Observer | None,
    ) -> None:
        self._trainer, self._seeds, self._end, self._observe = trainer, seeds, end, observe
        self._step = int(states[0].step)
        self._device = states[0].step.device
        self._feed = Feed(trainer.data.train, trainer.batch_size, seeds, self._device, mapped=trainer.data.mapped)
        ready = [with_optimizer(state, trainer.optimizer) for state in states]
        with _computing(trainer):
            self.running = trainer.engine.begin(ready, seeds, self._feed)

    def to(self, stop: int) -> list[float]:
        """Go on to step `stop`; returns the mean loss of each state on the way."""
        with _computing(self._trainer), _seeded(key(self._seeds[0], "layers", self._step), self._device):
            while self._step < stop:
                steps = min(self._feed.slots, stop - self._step)
                self._feed.fill(self._step, self._step + steps, self._end)
                self.running.take(steps, self._tick())
                self._step += steps
            return self.running.losses()

    def _tick(self) -> Tick | None:
        observe, step = self._observe, self._step
        if observe is None:
            return None

        def tick(steps: int) -> None:
            nonlocal step
            step += steps
            observe(step, None)

        return tick

    def __enter__(self) -> _Training:
        return self

    def __exit__(self, *exception: object) -> None:
        self._feed.close()


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
    engine: Making = "eager",
    precision: Precision = "fp32",
    metric: Metric = accuracy,
    observe: Observer | None = None,
) -> Transformation:
    """Training as a transformation TrainState -> TrainState, to compose: it goes on to step `steps`."""
    trainer = make_trainer(
        model,
        data,
        optimizer=optimizer,
        batch_size=batch_size,
        loss=loss,
        augment=augment,
        engine=engine,
        precision=precision,
        metric=metric,
    )

    def transformation(state: TrainState) -> TrainState:
        _check_steps_left(int(state.step), steps)
        return take_steps(trainer, state, seed=seed, until=steps, observe=observe)[0]

    return transformation


def accuracy_on(
    model: Model, state: TrainState, data: Dataset, split: str = "test", metric: Metric = accuracy
) -> float:
    """Accuracy, or another metric, of a state's network on a split (`train`, `val` or `test`)."""
    step = on_stored(make_eval_step(model, metric, metric=metric), data.scale)
    with torch.no_grad():
        (quality,) = evaluate(
            lambda batch: step(state.params, state.buffers, batch), getattr(data, split), state.step.device
        )
    return quality.accuracy


def measure(
    trainer: Trainer, params: Sequence[Params], buffers: Sequence[Buffers], split: Split, device: torch.device
) -> list[Quality]:
    """Loss and accuracy of some networks on a split, by the trainer's engine."""
    with _computing(trainer):
        return trainer.engine.measure(params, buffers, split, device)


def _check_steps_left(step: int, until: int) -> None:
    if step >= until:
        raise UserError(f"steps: the state is already at step {step} of {until}; rewind or fine-tune first")


def _measure(trainer: Trainer, states: Sequence[TrainState], losses: Sequence[float]) -> list[Point]:
    params, buffers = [state.params for state in states], [state.buffers for state in states]
    qualities = measure(trainer, params, buffers, trainer.data.val, states[0].step.device)
    step = int(states[0].step)
    return [Point(step, loss, quality.loss, quality.accuracy) for loss, quality in zip(losses, qualities, strict=True)]


@contextmanager
def _computing(trainer: Trainer) -> Iterator[None]:
    with torch.no_grad(), products(trainer.precision):
        yield


@contextmanager
def _seeded(number: int, device: torch.device) -> Iterator[None]:
    """Random layers (dropout, say) draw from torch's global generator: seed it, and put it back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number)
        yield
