"""The loop: many steps, evaluations among them, and the params that validation would choose."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from lthfunc.arguments import check_state_fits, public
from lthfunc.errors import UserError
from lthfunc.training.engines.table import Making
from lthfunc.training.evaluation import evaluate
from lthfunc.training.losses import Loss, Metric, accuracy, cross_entropy
from lthfunc.training.nonfinite import recover_from_nonfinite
from lthfunc.training.optimizers import Optimizer, with_rates_of
from lthfunc.training.precision import Precision
from lthfunc.training.results import BestNetwork, Checkpointer, Fit, Observer, Observers, Point, as_observers
from lthfunc.training.session import TrainingSession, are_finite
from lthfunc.training.steps import Augment, make_eval_step, on_stored
from lthfunc.training.trainer import Trainer, examples, make_trainer, measure, seeded_if_random
from lthfunc.trees.dataset_checks import check_split
from lthfunc.trees.model import Model
from lthfunc.trees.side_effects import side_effects_of
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Dataset, TrainState


@public
def take_steps(
    trainer: Trainer, state: TrainState, *, seed: int, until: int, observe: Observer | None = None
) -> tuple[TrainState, float]:
    """Train from `state.step` to step `until`; returns the new state and the mean training loss.

    Pure: `state` is not changed, and the result depends on the arguments alone, random layers included. An optimiser's
    state in it goes on, and with it the rates it was begun with; ``state._replace(opt=())`` takes the trainer's.
    """
    with TrainingSession(trainer, [state], [seed], until, observe=as_observers(observe)) as training:
        training.to(until)
        states, since = training.now()
        return states[0], training.mark(states, since)[0]


@public
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

    Raises UserError where the state has no step left to take, or a loss or gradient is no longer finite
    (`Trainer.on_nonfinite`).
    """
    before = None if so_far is None else [so_far]
    return fit_together(
        trainer,
        [state],
        seeds=[seed],
        until=until,
        eval_every=eval_every,
        observe=as_observers(observe),
        so_far=before,
    )[0]


@public
def fit_together(
    trainer: Trainer,
    states: Sequence[TrainState],
    *,
    seeds: Sequence[int],
    until: int,
    eval_every: int,
    observe: Observers | None = None,
    so_far: Sequence[Fit] | None = None,
    checkpointer: Checkpointer[Fit] | None = None,
) -> list[Fit]:
    """`fit` of several states at the same step, side by side as one vmapped program; a result for each.

    observe: told the points of all. checkpointer: who keeps the fits under way; `so_far` continues them, to the
    same bits on a CPU.

    Raises Stopped where the keeper asked for it.
    """
    if len(seeds) != len(states):
        raise UserError(f"fit_together: seeds must be one for each of {len(states)} states, not {len(seeds)}")
    phase = _untold if checkpointer is None else checkpointer.on_phase
    if so_far is None:
        _check_steps_left(int(states[0].step), until)
        phase("evaluation", int(states[0].step))
        points = _measure(trainer, states, [math.nan] * len(states), int(states[0].step))
        so_far = [
            Fit(state, BestNetwork(point, state.params, state.buffers), (point,))
            for state, point in zip(states, points, strict=True)
        ]
    fits = list(so_far)
    step = fits[0].curve[-1].step
    _check_steps_left(step, until)
    since = [each.since for each in fits]
    phase("preparation", step)
    with TrainingSession(
        trainer, states, seeds, until, since=since, observe=observe, checkpointer=checkpointer
    ) as training:
        while step < until:
            snapshot = training.snapshot
            step = min(until, step - step % eval_every + eval_every)
            training.to(step, fits)
            now = training.now()
            if not all(are_finite(*now)):
                now = recover_from_nonfinite(training, trainer, snapshot, seeds, step, fits, checkpointer)
            states, losses = now[0], training.mark(*now)
            phase("evaluation", step)
            points = _measure(trainer, states, losses, step)
            fits = [_extended(*item) for item in zip(fits, states, points, strict=True)]
            if observe is not None:
                observe(step, points)
    return fits


def _untold(phase: str, step: int) -> None:
    """Where nobody keeps or meters a training."""


def _extended(fit: Fit, state: TrainState, point: Point) -> Fit:
    better = point.val_loss < fit.best.point.val_loss
    chosen = BestNetwork(point, state.params, state.buffers) if better else fit.best
    return Fit(state, chosen, (*fit.curve, point))


@public
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
    """Training as a transformation TrainState -> TrainState, to compose: it goes on to step `steps`.

    The moments of a state that was trained before go on, at the optimiser's own rates. Raises UserError where they are
    another optimiser's; ``state._replace(opt=())`` begins with fresh ones.
    """
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
        check_state_fits("train", model, state)
        _check_steps_left(int(state.step), steps)
        if state.opt != ():  # its moments go on, at the rates of this training
            state = state._replace(opt=with_rates_of(state.opt, optimizer, state.params))
        return take_steps(trainer, state, seed=seed, until=steps, observe=observe)[0]

    return transformation


@public
def accuracy_on(
    model: Model, state: TrainState, data: Dataset, split: str = "test", metric: Metric = accuracy
) -> float:
    """Accuracy, or another metric, of a state's network on a split (`train`, `val` or `test`)."""
    part = check_split(data, split)
    if metric is accuracy and part.y.is_floating_point():
        raise UserError("metric: accuracy counts classes, and the targets are numbers; try lf.r2(variance)")
    step = on_stored(make_eval_step(model, metric, metric=metric), data.scale)
    with torch.no_grad(), seeded_if_random(side_effects_of(model, examples(data)), state.step.device):
        (quality,) = evaluate(lambda batch: step(state.params, state.buffers, batch), part, state.step.device)
    return quality.accuracy


def _check_steps_left(step: int, until: int) -> None:
    if step >= until:
        raise UserError(f"steps: the state is already at step {step} of {until}; rewind or fine-tune first")


def _measure(trainer: Trainer, states: Sequence[TrainState], losses: Sequence[float], step: int) -> list[Point]:
    params, buffers = [state.params for state in states], [state.buffers for state in states]
    qualities = measure(trainer, params, buffers, trainer.data.val, states[0].step.device)
    return [Point(step, loss, quality.loss, quality.accuracy) for loss, quality in zip(losses, qualities, strict=True)]
