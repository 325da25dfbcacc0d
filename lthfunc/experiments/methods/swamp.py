"""SWAMP: several networks trained under one mask, of which the mean is pruned (Choi et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.trained_masks import around, refuse_parts
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.training.averaging import swa
from lthfunc.training.chain import ChainContext, Part, numbers_of
from lthfunc.training.parametrize import buffers_part, parametrized, parametrized_state, trained_and_fixed
from lthfunc.training.trainer import trainer_of
from lthfunc.trees.types import Buffers, Params, Ticket, TrainState

#: Weights are averaged over the last quarter of a training.
_AVERAGED_FROM = 0.75


def swamp(plan: Plan, particles: int) -> Plan:
    """Train particles from the same pruned weights, each on its own part of a batch as many times as large (alg. 1).

    Their mean, also over the last quarter of the training, is evaluated, pruned and kept. Round 0 trains one network.
    """
    model, work = plan.model, plan.trainer.work
    _check(plan, particles)

    def drawn(seed: int) -> tuple[Params, Params, Buffers]:
        params, buffers = model.init(seed)
        return repeated(params, particles), {}, buffers

    def each(trained: Params, fixed: Params) -> Sequence[Params]:
        return [{name: leaf[number] for name, leaf in trained.items()} for number in range(particles)]

    many = parametrized(model, "swamp", drawn, each, lambda trained, fixed: mean_of(trained))
    averaging = swa(round(_AVERAGED_FROM * plan.steps))
    optimizer = around(work.optimizer, (_of_their_own(particles),), (averaging,))
    trainer = trainer_of(
        work._replace(model=many, optimizer=optimizer), plan.trainer.data, particles * plan.trainer.batch_size, "eager",
        plan.trainer.on_nonfinite,
    )  # fmt: skip

    def begin(start: TrainState, seed: int) -> TrainState:
        state = parametrized_state(many, repeated(start.params, particles), {}, start.buffers, start.step)
        masks = [mask.expand(particles, *mask.shape).clone() for mask in start.masks.values()]
        return state._replace(masks=dict(zip(state.masks, masks, strict=True)))

    def ticket(params: Params, buffers: Buffers, start: TrainState) -> Ticket:
        mean = mean_of(trained_and_fixed(params, buffers)[0])
        return Ticket(mean, buffers_part(buffers, start.buffers), start.masks)

    return plan._replace(through=(TrainedMasks(trainer, begin, ticket, dense=False),) * plan.rounds)


def _check(plan: Plan, particles: int) -> None:
    """Raise UserError for what would treat all particles as one network, or leaves by the shape of a stack."""
    refuse_parts(plan, "swamp", {"ema": "--ema", "swa": "average (lf.swa)"}, "would take the place of its own average")
    joint = "would scale the gradients of all particles as if they were one network's"
    refuse_parts(plan, "swamp", {"clip_by_global_norm": "--clip-norm", "sam": "--sam"}, joint)
    optimizer = plan.trainer.work.optimizer
    if optimizer.mixes:
        raise UserError("--method: swamp takes no --optimizer whose updates mix a layer's weights, as muon's do")
    if any(getattr(each, "decays", None) is not None for each in numbers_of(optimizer)):
        raise UserError(
            "--method: swamp takes no --no-decay; shapes of stacked weights don't tell matrices from others"
        )
    size, examples = plan.trainer.batch_size, plan.trainer.data.examples
    if particles * size > examples:
        accepted = f"at most {examples // size}, as each takes {size} of the {examples} training examples in a step"
        raise invalid("--particles", particles, accepted)


def repeated(params: Params, particles: int) -> Params:
    """As many copies of each leaf, along a new first axis."""
    return {name: leaf.expand(particles, *leaf.shape).clone() for name, leaf in params.items()}


def mean_of(stacked: Params) -> Params:
    """The mean of the particles."""
    return {name: leaf.mean(0) for name, leaf in stacked.items()}


def _of_their_own(particles: int) -> Part:
    """Gradients of each particle's own mean loss: the loss is the mean over all of them."""

    def update(grads: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        return {name: grad * particles for name, grad in grads.items()}, state

    return Part("particles", lambda params, buffers: (), update)
