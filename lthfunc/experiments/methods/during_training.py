"""Masks that change during a training: gradual pruning, drop and grow, early birds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lthfunc.catalog.pruning import DROP_SCHEDULES
from lthfunc.errors import UserError, failing_as_options, invalid
from lthfunc.experiments.functions import Growing, ScoreContext, growth_of
from lthfunc.experiments.iterative import Plan
from lthfunc.sparsify.allocation import looks_at_survivors_alone
from lthfunc.sparsify.density_schedules import cubic, periodic
from lthfunc.sparsify.drop_and_grow import drop_and_grow, under_new_masks
from lthfunc.sparsify.growth import random_growth
from lthfunc.sparsify.mask_comparison import mask_distance
from lthfunc.sparsify.scores import Scores, checked_score, magnitude
from lthfunc.sparsify.structures import unstructured
from lthfunc.sparsify.survivor_pruning import prune_survivors
from lthfunc.sparsify.transforms import prune
from lthfunc.tracebacks import is_library_function
from lthfunc.training.gradient_growth import growth_by
from lthfunc.training.mask_updates import MaskUpdates, UpdateContext
from lthfunc.training.results import DenseNetwork, DropAndGrow, GradientGrowth
from lthfunc.training.schedules import Schedule
from lthfunc.training.trainer import Trainer
from lthfunc.trees.ops import density
from lthfunc.trees.types import Masks, NewMasks, TrainState

#: Updates unless --update-every says how often: more often than Evci et al. 2020, sec. 4 (every 100 of 32,000 steps),
#: since trainings are shorter.
_TIMES = 30
#: Early bird (You et al. 2020, sec. 3, and their code): the share of all weights in which masks may differ to count as
#: settled, how many masks in a row, and how often they are drawn. Theirs are drawn after each of 160 epochs.
_SETTLED, QUEUE, LOOKS = 0.1, 5, 40


def gradual(plan: Plan, update_every: int | None, update_until: float) -> Plan:
    """Prune by magnitude along Zhu & Gupta's cubic; remaining weights keep their optimiser state."""
    end, every = period(plan, update_every, update_until)

    def updates(target: float) -> MaskUpdates:
        densities = dict(cubic(target, end // 10, end, every))

        def masks(state: TrainState, now: UpdateContext) -> NewMasks:
            found = pruned_to(plan, densities[now.step])(state).masks
            return NewMasks(found, found)

        dense = by_masks(tuple(densities), masks)
        if not asks_for_survivors_alone(plan):
            return dense
        return dense._replace(
            exchange=lambda network, now: prune_survivors(densities[now.step], allocate=plan.allocate)
        )

    return from_dense(plan, updates)


def asks_for_survivors_alone(plan: Plan) -> bool:
    """Whether its pruning by magnitude is one of `prune_survivors`."""
    return plan.select is unstructured and looks_at_survivors_alone(plan.allocate)


def by_masks(steps: tuple[int, ...], masks: Callable[[TrainState, UpdateContext], NewMasks]) -> MaskUpdates:
    """Updates to masks that follow from the network, not from what its optimiser keeps."""

    def change(state: TrainState, now: UpdateContext) -> TrainState:
        return under_new_masks(state, masks(state, now))

    return MaskUpdates(steps, change, exchange=lambda network, now: masks(network(), now), draws_after_network=True)


def exchanging(
    plan: Plan,
    update_every: int | None,
    update_until: float,
    drop_fraction: float,
    drop_schedule: str,
    growth: str,
    rates: Schedule,
) -> Plan:
    """Drop small weights and grow as many others, again and again (SET, RigL); ERK masks at first."""
    end, every = period(plan, update_every, update_until)
    falling = DROP_SCHEDULES.load(drop_schedule)
    growing = growth_of(growth, rates)
    updates = exchanges(
        plan.trainer, steps_of(end, every), growing, lambda step: falling(drop_fraction, step, end),
        draws=not is_library_function(falling),
    )  # fmt: skip
    return with_updates(plan, updates)


def exchanges(
    trainer: Trainer, steps: tuple[int, ...], growing: Growing, share: Callable[[int], float], *, draws: bool = False
) -> MaskUpdates:
    """Updates that drop small weights and grow others. share: of each layer's weights, by the step; draws: whether it
    may draw from the global generators."""

    def exchange(network: DenseNetwork, now: UpdateContext) -> DropAndGrow:
        if growing.random:
            return random_growth(now.seed, now.step), share(now.step)

        def scores() -> Scores:
            return growth_scores(trainer, growing, network(), now)

        if not growing.by_gradient:
            return scores(), share(now.step)

        growth = growth_by(trainer.data, trainer.batch_size, now.seed, now.step)
        return growth._replace(scores=scores), share(now.step)

    def change(state: TrainState, now: UpdateContext) -> TrainState:
        growth, fraction = exchange(lambda: state, now)
        return drop_and_grow(state, growth.scores() if isinstance(growth, GradientGrowth) else growth, fraction)

    return MaskUpdates(steps, change, exchange=exchange, draws_after_network=not draws)


def growth_scores(trainer: Trainer, growing: Growing, state: TrainState, now: UpdateContext) -> Scores:
    """The scores of the weights to grow after a step."""
    work = trainer.work
    lr = growing.rate_at(now.step)
    about = (work.model, trainer.data, trainer.batch_size, lr, now.seed, now.step, state, state, work.loss)
    with failing_as_options({"score": "growth"}):
        return checked_score(growing(ScoreContext(*about)))(state.params, state.masks)


def steps_of(end: int, every: int) -> tuple[int, ...]:
    """The steps of updates at an interval, the last of them before `end`."""
    return tuple(periodic(every, end, every)[:-1])


def with_updates(plan: Plan, updates: MaskUpdates) -> Plan:
    """The plan with the same updates in each round."""
    return plan._replace(updates=(updates,) * plan.rounds)


def early_bird(plan: Plan, update_every: int | None) -> Plan:
    """Train until the mask that pruning would give has settled, then prune, and train the rest to the end.

    You et al. 2020, but with single weights by magnitude instead of channels by batch norm's scales. The weights and
    the schedule continue. If the mask doesn't settle, the last one before the end is used. At densities below 5 %,
    where masks can't differ in a tenth of the weights, the fifth is used.
    """
    every = _checked(update_every or max(1, plan.steps // LOOKS), plan.steps)
    looks = steps_of(plan.steps, every)

    def updates(target: float) -> MaskUpdates:
        pruning = pruned_to(plan, target, keep_moments=False)

        def remember(state: TrainState, now: UpdateContext) -> tuple[Masks, ...]:
            return () if density(state.masks) < 1 else (*now.memory, pruning(state).masks)[-QUEUE:]

        def change(state: TrainState, now: UpdateContext) -> TrainState:
            dense = density(state.masks) == 1
            return pruning(state) if dense and (settled(now.memory) or now.last) else state

        return MaskUpdates(looks, change, remember)

    return from_dense(plan, updates)


def settled(masks: Sequence[Masks]) -> bool:
    """Whether there are enough masks, and the last one is similar to each before it."""
    most = _SETTLED * (1 + 1e-9)  # rounding may make a distance of exactly a tenth slightly larger
    return len(masks) == QUEUE and all(mask_distance(masks[-1], other) <= most for other in masks[:-1])


def period(plan: Plan, update_every: int | None, update_until: float) -> tuple[int, int]:
    """(the step from which on masks stay, the steps between two updates). Raises UserError if none fits in."""
    end = round(update_until * plan.steps)
    return end, _checked(update_every or max(1, end // _TIMES), end)


def _checked(every: int, end: int) -> int:
    if end < 2:
        raise UserError("--steps: the training is too short for an update of masks")
    if every >= end:
        raise invalid("--update-every", every, f"at most {end - 1}, as masks no longer change from step {end} on")
    return every


def pruned_to(plan: Plan, target: float, keep_moments: bool = True) -> Callable[[TrainState], TrainState]:
    """Pruning by magnitude, with the plan's allocation and structure."""
    return prune(density=target, score=magnitude, allocate=plan.allocate, select=plan.select, keep_moments=keep_moments)


def from_dense(plan: Plan, updates: Callable[[float], MaskUpdates]) -> Plan:
    """The plan with trainings that start dense. updates: of a round's density."""
    rounds = range(1, plan.rounds + 1)
    return plan._replace(
        densities=(1.0,) * plan.rounds, updates=tuple(updates(plan.density_of(number)) for number in rounds)
    )
