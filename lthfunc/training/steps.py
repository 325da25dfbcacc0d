"""A training step and an evaluation, as pure functions of a state and a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from lthfunc.arguments import public
from lthfunc.distributed.collectives import SINGLE_RANK, Collectives
from lthfunc.distributed.data_parallel import averaged_gradients, surviving_indices
from lthfunc.distributed.sync_batchnorm import with_sync_batchnorm
from lthfunc.errors import UserError
from lthfunc.tracebacks import is_library_function
from lthfunc.training.accumulation import over_parts, parts_of_batch
from lthfunc.training.chain import ChainContext, is_library_optimizer, masked, updated
from lthfunc.training.loss_context import NetworkLoss, takes_context
from lthfunc.training.losses import Loss, Metric, accuracy, cross_entropy
from lthfunc.training.optimizer_states import check_optimizer_state, fresh_state
from lthfunc.training.optimizers import Optimizer
from lthfunc.training.precision import Precision, autocast_for
from lthfunc.training.user_functions import checked_augment, checked_loss, checked_optimizer
from lthfunc.trees.augmenting import Augment as Augment, changes_targets
from lthfunc.trees.model import Model, apply_evaluating, run_training
from lthfunc.trees.ops import clone, scaled
from lthfunc.trees.outputs import prediction
from lthfunc.trees.rng import fold_in
from lthfunc.trees.side_effects import SideEffects
from lthfunc.trees.types import Batch, Buffers, Masks, Params, Scale, TrainState

#: loss (float32) and accuracy (float64), or another metric in its place: scalars, means over the batch.
Metrics = dict[str, Tensor]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[[Params, Buffers, Batch], Metrics]


class Work(NamedTuple):
    """What is to be run: the same for every engine. collectives: of the ranks that run it together.

    side_effects: what the module does besides computing outputs.
    """

    model: Model
    loss: Loss
    optimizer: Optimizer
    scale: Scale | None
    augment: Augment | None
    precision: Precision
    metric: Metric = accuracy
    collectives: Collectives = SINGLE_RANK
    side_effects: SideEffects = SideEffects()

    @property
    def advance(self) -> LoopBody:
        """The body of the training loop, on states and batches that are the loop's own."""
        work = self._replace(metric=unmeasured) if changes_targets(self.augment) else self
        return make_loop_body(make_inner_step(work), self.scale, self.augment, self.collectives)

    @property
    def evaluate(self) -> EvalStep:
        """The evaluation of a stored batch."""
        return on_stored(make_eval_step(self.model, self.loss, self.precision, self.metric), self.scale)


@public
def make_train_step(
    model: Model,
    loss: Loss,
    optimizer: Optimizer,
    precision: Precision = "fp32",
    metric: Metric = accuracy,
    collectives: Collectives = SINGLE_RANK,
) -> TrainStep:
    """Make a pure training step: (state, batch) -> (state, metrics).

    model: the network. loss, metric: (outputs, targets) -> scalar, the mean over the batch; a loss may take a third
    argument, a `LossContext`. optimizer: whose state the
    state must hold (`with_optimizer`). precision: "bf16" runs the network under autocast; params and gradients stay
    float32. The gradient is masked before the optimiser, or a `chain`'s first part, gets it, so weights that are pruned
    stay exactly zero.
    `state.masks` may be bool or, faster, float.

    collectives: of several ranks, each of which calls the step with its part of the batch, equally many examples, and
    gets the state that the whole batch leads to. The step then takes the state's `surviving_indices` as a third
    argument; without it they are computed in every step. Returns the step. Raises UserError, when it is called, for a
    state without optimiser state.

    >>> model, optimizer = lf.from_module(nn.Linear(4, 2)), lf.sgd(0.1)
    >>> step = lf.make_train_step(model, lf.cross_entropy, optimizer)
    >>> state = lf.with_optimizer(lf.init(model), optimizer)
    >>> state, metrics = step(state, (torch.ones(3, 4), torch.tensor([0, 1, 1])))
    >>> int(state.step), sorted(metrics)
    (1, ['accuracy', 'loss'])
    """
    work = Work(model, loss, optimizer, None, None, precision, metric, collectives)
    inner, tidy = make_inner_step(work), is_library_code(work)

    def step(state: TrainState, batch: Batch, index: Tensor | None = None) -> tuple[TrainState, Metrics]:
        if state.opt == () and is_library_function(optimizer.init):
            raise UserError("step: the state has no optimiser state; lf.with_optimizer(state, optimizer) gives it one")
        # A user's module or functions may write into what they get, so they get copies.
        return inner(*((state, batch) if tidy else clone((state, batch))), index)

    return step


def is_library_code(work: Work) -> bool:
    """Whether a step runs this library's code only, which is known to write into nothing."""
    tidy = all(map(is_library_function, (work.loss, work.metric))) and is_library_optimizer(work.optimizer)
    return work.model.pure and tidy and not takes_context(work.loss)  # which may hold functions and networks of a user


def make_inner_step(work: Work) -> TrainStep:
    """`make_train_step` for a loop that owns its states and batches, into which a module may write."""
    collectives, optimizer = work.collectives, checked_optimizer(work.optimizer)
    objective = objective_of(work._replace(model=with_sync_batchnorm(work.model, collectives)))
    tidy = is_library_code(work)
    gradient = over_parts(grad_and_value(objective, has_aux=True), parts_of_batch(optimizer))

    def step(state: TrainState, batch: Batch, index: Tensor | None = None) -> tuple[TrainState, Metrics]:
        if collectives.world_size > 1 and index is None:
            index = surviving_indices(state)

        def gradient_at(params: Params, batch: Batch) -> tuple[Params, Tensor, Tensor, Buffers]:
            found = gradient(params, state.buffers, batch, state.masks, state.step)
            grads, (value, (correct, buffers)) = found
            if collectives.world_size > 1:
                assert index is not None
                grads, (value, correct) = averaged_gradients(collectives, grads, (value, correct), index)
            return masked(grads, state.masks), value, correct, buffers

        # A user's code may write into its inputs, which a second gradient needs as they were.
        again = batch if tidy or not optimizer.parts else clone(batch)
        grads, value, correct, buffers = gradient_at(state.params, batch)
        context = ChainContext(
            state.params, state.step, state.masks, buffers, lambda params: gradient_at(params, again)[0]
        )
        params, opt = updated(optimizer, grads, state.opt, context)
        return TrainState(params, buffers, state.masks, opt, state.step + 1), {"loss": value, "accuracy": correct}

    return step


def unmeasured(outputs: Tensor, targets: Tensor) -> Tensor:
    """The metric where nobody reads it and targets may be of another kind than the data set's: NaN."""
    return prediction(outputs).new_full((), math.nan, dtype=torch.float64)


def objective_of(work: Work) -> Callable[..., tuple[Tensor, tuple[Tensor, Buffers]]]:
    """(params, buffers, batch, masks, step) -> (the loss in training mode, (the metric, the new buffers)).

    The module may write into the params and the batch. masks, step: for the context of a loss that takes one.
    """
    loss, metric = NetworkLoss(work.model, work.loss), checked_loss("metric", work.metric)

    def objective(
        params: Params, buffers: Buffers, batch: Batch, masks: Masks | None = None, step: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Buffers]]:
        with autocast_for(work.precision, batch[0].device):
            value, outputs, buffers = loss(
                lambda model, x: run_training(model, params, buffers, x), batch, params,
                training=True, masks=masks, step=step,
            )  # fmt: skip
        return value, (metric(outputs, batch[1]), buffers)

    return objective


@public
def make_eval_step(
    model: Model, loss: Loss = cross_entropy, precision: Precision = "fp32", metric: Metric = accuracy
) -> EvalStep:
    """Make a pure evaluation in evaluation mode: (params, buffers, batch) -> metrics.

    model, loss, precision, metric: as `make_train_step` takes them. Returns the function; its metrics are "loss" and
    "accuracy", which is the metric. When it is called, it raises UserError for a loss or metric that changes its
    arguments.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> evaluate = lf.make_eval_step(model)
    >>> sorted(evaluate(lf.init(model).params, {}, (torch.ones(3, 4), torch.tensor([0, 1, 1]))))
    ['accuracy', 'loss']
    """
    sees_params = takes_context(loss)
    tidy = all(map(is_library_function, (loss, metric))) and not sees_params
    of_outputs, metric = NetworkLoss(model, loss), checked_loss("metric", metric)

    def step(params: Params, buffers: Buffers, batch: Batch) -> Metrics:
        if not tidy:  # what a user's function writes before it is refused is its own
            params, batch = clone(params) if sees_params else params, clone(batch)
        with autocast_for(precision, batch[0].device):
            value, outputs, _ = of_outputs(
                lambda model, x: (apply_evaluating(model, params, buffers, x), None), batch, params, training=False
            )
        return {"loss": value, "accuracy": metric(outputs, batch[1])}

    return step


class Carry(NamedTuple):
    """What a running loop passes from step to step.

    key: int64 scalar, of the run's seed; a step folds its number into it, so that its draws depend on nothing else.
    loss: float64 (1,), the sum of the steps' losses. travels: between several ranks, the indices of gradients to
    exchange.
    """

    state: TrainState
    key: Tensor
    loss: Tensor
    travels: Tensor | tuple[()] = ()

    @property
    def losses(self) -> list[float]:
        """The sum of each state's losses."""
        return self.loss.flatten().tolist()

    def with_losses(self, losses: Sequence[float]) -> Carry:
        """The carry with other sums of losses."""
        return self._replace(loss=torch.tensor(losses, dtype=torch.float64).view_as(self.loss).to(self.loss.device))


LoopBody = Callable[[Carry, Batch], Carry]


def make_loop_body(
    step: TrainStep, scale: Scale | None = None, augment: Augment | None = None, collectives: Collectives = SINGLE_RANK
) -> LoopBody:
    """The body of a training loop, still pure: a step on a batch (or a rank's part of it) as the data set stores it."""
    augment = checked_augment(augment)

    def advance(carry: Carry, batch: Batch) -> Carry:
        stored, targets = batch
        inputs = scaled(stored, scale)
        if augment is not None:
            place = (collectives.rank * len(inputs),) if collectives.world_size > 1 else ()
            inputs, targets = augment(inputs, targets, fold_in(carry.key, carry.state.step), *place)
        state, metrics = step(carry.state, (inputs, targets), *([carry.travels] if collectives.world_size > 1 else []))
        return carry._replace(state=state, loss=carry.loss + metrics["loss"])

    return advance


def on_stored(step: EvalStep, scale: Scale | None) -> EvalStep:
    """The evaluation of a batch as the data set stores it."""
    return lambda params, buffers, batch: step(params, buffers, (scaled(batch[0], scale), batch[1]))


@public
def with_optimizer(state: TrainState, optimizer: Optimizer) -> TrainState:
    """The state with an optimiser state: its own, or a fresh one of `optimizer` where it has none (``()``).

    Its own keeps its learning rates. Raises UserError where it is another optimiser's, or of another network.

    >>> state = lf.with_optimizer(lf.init(lf.from_module(nn.Linear(4, 2))), lf.sgd(0.1, momentum=0.9))
    >>> sorted(state.opt.velocity)
    ['bias', 'weight']
    """
    if state.opt != ():
        check_optimizer_state(state.opt, optimizer, state)
        return state
    return state._replace(opt=fresh_state(optimizer, state))


def floating_masks(state: TrainState) -> TrainState:
    """Masks in the params' dtype: a product with floats compiles to fewer, faster instructions than one with bools."""
    return state._replace(masks={name: mask.to(state.params[name].dtype) for name, mask in state.masks.items()})


def boolean_masks(state: TrainState) -> TrainState:
    """Masks as bool again, the public type."""
    return state._replace(masks={name: mask.to(torch.bool) for name, mask in state.masks.items()})
