"""The training loop: many steps, evaluations among them, and the network with the least validation loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lthfunc.arguments import check_state_fits, public
from lthfunc.errors import UserError, invalid
from lthfunc.training.averaging import result_of
from lthfunc.training.engines.interface import Work
from lthfunc.training.engines.table import Making
from lthfunc.training.evaluation import averaged, evaluate, from_means
from lthfunc.training.losses import Loss, Metric, accuracy, cross_entropy
from lthfunc.training.malloc import return_freed_memory
from lthfunc.training.mask_updates import MaskUpdates, following
from lthfunc.training.nonfinite import recover_from_nonfinite
from lthfunc.training.optimizer_states import with_rates_of
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.packed_fits import (
    AnyFit,
    best_network,
    dense_fit,
    evaluated,
    packed_fit,
    unfinished_fits,
    without_moments,
)
from lthfunc.training.precision import Precision
from lthfunc.training.results import Checkpointer, Fit, Observer, Observers, Point, as_observers
from lthfunc.training.session import Snapshot, TrainingSession
from lthfunc.training.steps import Augment, make_eval_step, on_stored
from lthfunc.training.trainer import OnNonfinite, Trainer, examples, measure, seeded_if_random, trainer_of
from lthfunc.training.user_functions import checked_loss
from lthfunc.trees.dataset_checks import check_data
from lthfunc.trees.model import Model
from lthfunc.trees.packed_states import AnyState, dense_state
from lthfunc.trees.side_effects import side_effects_of
from lthfunc.trees.transformations import Transformation
from lthfunc.trees.types import Dataset, Split, TrainState


@public
def take_steps(
    trainer: Trainer, state: TrainState, *, seed: int, until: int, observe: Observer | None = None
) -> tuple[TrainState, float]:
    """Train from `state.step` to step `until`.

    seed: decides the order of examples and the draws of random layers. observe: called with the number of each step and
    None. The state's optimiser state continues, with the learning rates that it was begun with;
    ``state._replace(opt=())`` takes the trainer's. Returns the new state and the mean training loss; `state` is not
    changed, and the result depends on the arguments alone. Raises UserError where a loss or gradient is not finite
    (`Trainer.on_nonfinite`).

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=2)
    >>> int(lf.take_steps(trainer, lf.init(model), seed=0, until=5)[0].step)
    5
    """
    with TrainingSession(trainer, [state], [seed], until, observe=as_observers(observe)) as training:
        training.to(until)
        states, since = _finite_now(training, [seed], until, ())
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
    updates: MaskUpdates | None = None,
) -> Fit:
    """Train to step `until`, evaluating on the validation split at the start, every `eval_every` steps, and the end.

    trainer: of `make_trainer`. seed: decides the order of examples and the draws of random layers. observe: called with
    the number of each step and, after an evaluation, the new point of the curve. so_far: a fit to continue, which
    stopped at `state`. updates: masks that change on the way. Returns the last state, the network with the least
    validation loss (after the last change of masks; an averaged one with `ema` or `swa`), and the learning curve.
    Raises UserError where no step is left to take, or where a loss or gradient is not finite (`Trainer.on_nonfinite`).

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=2)
    >>> found = lf.fit(trainer, lf.init(model), seed=0, until=6, eval_every=3)
    >>> [point.step for point in found.curve]
    [0, 3, 6]
    """
    before = None if so_far is None else [so_far]
    return fit_together(
        trainer, [state], seeds=[seed], until=until, eval_every=eval_every, observe=as_observers(observe),
        so_far=before, updates=updates,
    )[0]  # fmt: skip


@public
def fit_together(
    trainer: Trainer,
    states: Sequence[AnyState],
    *,
    seeds: Sequence[int],
    until: int,
    eval_every: int,
    observe: Observers | None = None,
    so_far: Sequence[AnyFit] | None = None,
    checkpointer: Checkpointer[Any] | None = None,
    updates: MaskUpdates | None = None,
) -> list[Fit]:
    """Run `fit` for several states at the same step, vmapped into one program.

    trainer, until, eval_every, updates: as `fit` takes them. states: dense, or on survivors (`pack_state`), to the same
    bits. seeds: one for each of the states. observe: called with the new points of all. so_far: fits to continue, to
    the same bits on a CPU. checkpointer: the callbacks that save unfinished fits. Returns a fit for each state. Raises
    Stopped where the checkpointer asked for it.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> trainer = lf.make_trainer(model, data, optimizer=lf.sgd(0.1), batch_size=2)
    >>> len(lf.fit_together(trainer, [lf.init(model, 0), lf.init(model, 1)], seeds=[0, 1], until=4, eval_every=4))
    2
    """
    if len(seeds) != len(states):
        raise UserError(f"fit_together: seeds must be one for each of {len(states)} states, not {len(seeds)}")
    phase = (checkpointer or Checkpointer(lambda fits: None)).on_phase
    ready = [dense_state(each) for each in states]
    if so_far is None:
        _check_steps_left(int(ready[0].step), until)
    fits: list[AnyFit] = [*(untrained_fits(trainer, ready, checkpointer) if so_far is None else so_far)]
    step = fits[0].curve[-1].step
    _check_steps_left(step, until)
    since = [each.since for each in fits]
    phase("preparation", step)
    with TrainingSession(
        trainer, ready, seeds, until, since=since, observe=observe, checkpointer=checkpointer
    ) as training:
        del ready  # as large as the network, which the session may keep on survivors
        fits = _held(training, fits, until)
        return_freed_memory(sum(shape.numel() for each in training.on_survivors for shape in each.shapes.values()))
        while fits[0].curve[-1].step < until:
            last = fits[0].curve[-1].step
            look = min(until, last - last % eval_every + eval_every)
            change = following(updates, fits, until)
            step = look if change is None else min(look, change)
            training.to(step, fits)
            if step == look:
                fits = _evaluated(training, seeds, step, fits, phase)
                if observe is not None:
                    observe(step, [each.curve[-1] for each in fits])
            if updates is not None and step == change:
                phase("preparation", step)
                fits = _changed(training, updates, seeds, step, until, fits, known=step == look)
            fits = _held(training, fits, until)
    return [dense_fit(each) for each in fits]


def _held(training: TrainingSession, fits: Sequence[AnyFit], until: int) -> list[AnyFit]:
    """The fits on survivors, while the running loop keeps these alone. It has the moments, too."""
    if not training.on_survivors or fits[0].curve[-1].step >= until:
        return list(fits)
    return [without_moments(each) for each in fits]


def _evaluated(
    training: TrainingSession, seeds: Sequence[int], step: int, fits: Sequence[AnyFit],
    phase: Callable[[str, int], None],
) -> list[AnyFit]:  # fmt: skip
    """The fits with their states at this step, and a point more."""
    states, since = training.packed_now() or _finite_now(training, seeds, step, fits)
    now = unfinished_fits(fits, states, since)
    if training.on_survivors:  # also after what was not finite was left out
        now = [packed_fit(each) for each in now]
    losses = training.mark([each.state for each in now if isinstance(each, Fit)], since)
    phase("evaluation", step)
    points = _measure(training.trainer, [each.state for each in now], losses, step)
    return [evaluated(*item) for item in zip(now, points, strict=True)]


def _changed(
    training: TrainingSession, updates: MaskUpdates, seeds: Sequence[int], step: int, until: int,
    fits: Sequence[AnyFit], *, known: bool,
) -> list[AnyFit]:  # fmt: skip
    """The fits after an update of masks at this step. known: whether they have the states there."""
    exchanged = updates.on_survivors(training, fits, step, until)
    if exchanged is not None:
        return exchanged
    if not known:
        fits = unfinished_fits(fits, *_finite_now(training, seeds, step, fits))
    changed = [updates.applied(dense_fit(each), seed, until) for each, seed in zip(fits, seeds, strict=True)]
    training.change_to([each.state for each in changed], [each.since for each in fits if each.since])
    return list(changed)


def _finite_now(training: TrainingSession, seeds: Sequence[int], step: int, fits: Sequence[AnyFit]) -> Snapshot:
    """Where the training stands, at this step, once what was not finite on the way was left out."""
    now = training.now()
    if all(training.are_finite(now)):
        return now
    return recover_from_nonfinite(training, training.snapshot(), seeds, step, fits)


def untrained_fits(
    trainer: Trainer, states: Sequence[TrainState], checkpointer: Checkpointer[Any] | None = None
) -> list[Fit]:
    """Fits without a step: each state, and its evaluation on the validation split."""
    step = int(states[0].step)
    if checkpointer is not None:
        checkpointer.on_phase("evaluation", step)
    points = _measure(trainer, states, [math.nan] * len(states), step)
    return [Fit(state, best_network(point, state), (point,)) for state, point in zip(states, points, strict=True)]


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
    on_nonfinite: OnNonfinite = "stop",
    observe: Observer | None = None,
) -> Transformation:
    """Training as a transformation: a state goes in, and comes out trained to step `steps`.

    model, data, optimizer, batch_size, loss, augment, engine, precision, metric, on_nonfinite: as of `make_trainer`.
    seed: decides the order of examples. observe: called with the number of each step. The moments of a state that was
    trained before continue, at the rates of this optimiser. Raises UserError, when it is applied, where they are
    another optimiser's (``state._replace(opt=())`` begins with fresh ones), and where a loss or gradient is not finite.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> start = lf.init(model)
    >>> train = lf.train(model, data, optimizer=lf.sgd(0.1), steps=5, batch_size=2)
    >>> find = lf.compose(train, lf.prune(fraction=0.5), lf.rewind(to=start))
    >>> lf.density(find(start).masks)
    0.5
    """
    data = check_data(data)
    work = Work(model, loss, optimizer, data.scale, augment, precision, metric)
    trainer = trainer_of(work, data, batch_size, engine, on_nonfinite)

    def transformation(state: TrainState) -> TrainState:
        check_state_fits("train", model, state)
        _check_steps_left(int(state.step), steps)
        if state.opt != ():  # its moments go on, at the rates of this training
            state = state._replace(opt=with_rates_of(state.opt, optimizer, state))
        return take_steps(trainer, state, seed=seed, until=steps, observe=observe)[0]

    return transformation


@public
def accuracy_on(
    model: Model, state: TrainState, data: Dataset, split: str = "test", metric: Metric = accuracy
) -> float:
    """The accuracy, or another metric, of a state's network on a split of a data set.

    model, state: the network. data: the data set. split: "train", "val" or "test". metric: (outputs, targets) ->
    scalar. Raises UserError for accuracy on targets that are numbers, which have no classes.

    >>> data = lf.data.from_tensors("tiny", (torch.randn(9, 4), [0, 1, 1] * 3), (torch.randn(2, 4), [0, 1]), val=3)
    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> lf.accuracy_on(model, lf.init(model), data) in (0.0, 0.5, 1.0)
    True
    """
    data = check_data(data)
    if split not in ("train", "val", "test"):
        raise invalid("split", split, "train, val or test")
    part: Split = getattr(data, split)
    if metric is accuracy and part.y.is_floating_point():
        raise UserError("metric: accuracy requires classes, but the targets are numbers; try lf.r2(variance)")
    mean = averaged(metric)
    step = on_stored(make_eval_step(model, checked_loss("metric", mean), metric=mean), data.scale)
    with torch.no_grad(), seeded_if_random(side_effects_of(model, examples(data)), state.step.device):
        found = evaluate(lambda batch: step(state.params, state.buffers, batch), part, state.step.device)
    return from_means(found, metric)[0].accuracy


def _check_steps_left(step: int, until: int) -> None:
    if step >= until:
        raise UserError(f"steps: the state is already at step {step} of {until}; rewind or fine-tune first")


def _measure(trainer: Trainer, states: Sequence[AnyState], losses: Sequence[float], step: int) -> list[Point]:
    qualities = measure(trainer, [result_of(state) for state in states], trainer.data.val)
    return [Point(step, loss, quality.loss, quality.accuracy) for loss, quality in zip(losses, qualities, strict=True)]
