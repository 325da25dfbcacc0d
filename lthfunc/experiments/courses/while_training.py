"""Masks that change during one training: gradual pruning, and drop and grow."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.experiments.courses.context import MethodContext, loss, pruned_to, samples, start
from lthfunc.experiments.courses.course import Carry, Course, Method, Stage
from lthfunc.experiments.methods.during_training import LOOKS, QUEUE, settled
from lthfunc.sparsify.budgets import erk
from lthfunc.sparsify.density_schedules import cubic, periodic
from lthfunc.sparsify.drop_and_grow import cosine_drop_fraction, drop_and_grow
from lthfunc.sparsify.gradient_scores import mean_gradient
from lthfunc.sparsify.scores import Scores, random_scores
from lthfunc.sparsify.transforms import prune
from lthfunc.trees.types import TrainState

#: (context, network, seed, step) -> growth scores.
GrowthScore = Callable[[MethodContext, TrainState, int, int], Scores]

#: Share of the training during which masks change; how often (of all steps), and the initial drop fraction. Evci et
#: al. 2020, sec. 4 (75 %, every 100 of 32,000 steps, 0.3), and more often here, since trainings are shorter.
_CHANGING, _TIMES, _DROP_FRACTION = 0.75, 30, 0.3


def _stage(step: int, change: Callable[[TrainState], TrainState]) -> Stage:
    """Train to a step, then change the network."""
    return Stage(lambda carry: step, lambda carry: carry._replace(state=change(carry.state)))


@Method
def gradual(context: MethodContext, seed: int) -> Course:
    """Prune by magnitude along Zhu & Gupta's cubic; remaining weights keep their optimiser state."""
    end = round(_CHANGING * context.steps)
    densities = cubic(context.density, end // 10, end, max(1, end // _TIMES))
    stages = [_stage(step, prune(density=density, keep_moments=True)) for step, density in densities]
    return Course(Carry(start(context, seed)), context.trainer, stages)


def drop_and_grow_method(growth_score: GrowthScore) -> Method:
    """Start from random ERK masks; then repeatedly drop small weights and grow as many others, fewer each time."""

    @Method
    def method(context: MethodContext, seed: int) -> Course:
        end = round(_CHANGING * context.steps)
        every = max(1, end // _TIMES)

        def at(step: int) -> Stage:
            share = cosine_drop_fraction(_DROP_FRACTION, step, end)
            return _stage(step, lambda state: drop_and_grow(state, growth_score(context, state, seed, step), share))

        sparse = pruned_to(context, erk(), score=random_scores(seed, "at-init"))(start(context, seed))
        return Course(Carry(sparse), context.trainer, [at(step) for step in periodic(every, end, every)[:-1]])

    return method


def by_chance(context: MethodContext, state: TrainState, seed: int, step: int) -> Scores:
    """SET (Mocanu et al. 2018)."""
    return random_scores(seed, "regrow", step)(state.params, state.masks)


def by_gradient(context: MethodContext, state: TrainState, seed: int, step: int) -> Scores:
    """RigL (Evci et al. 2020): where the dense gradient is largest, on a batch."""
    batch = samples(context, seed, 1, f"regrow/{step}")
    gradient = mean_gradient(loss(context, state), batch)(state.params, state.masks)
    return {name: leaf.abs() for name, leaf in gradient.items()}


set_, rigl = drop_and_grow_method(by_chance), drop_and_grow_method(by_gradient)


@Method
def early_bird(context: MethodContext, seed: int) -> Course:
    """Train until the mask that pruning would give has settled, then prune, and train the rest to the end.

    You et al. 2020, but with single weights by magnitude instead of channels by batch norm's scales. The weights and
    the schedule continue. If the mask doesn't settle, the last one before the end is used. At densities below 5 %,
    where masks can't differ in a tenth of the weights, the fifth is used.
    """
    pruning = pruned_to(context)

    def look(step: int) -> Stage:
        def compare(carry: Carry) -> Carry:
            if settled(carry.recent):
                return carry
            return carry._replace(recent=(*carry.recent, pruning(carry.state).masks)[-QUEUE:])

        return Stage(lambda carry: 0 if settled(carry.recent) else step, compare)

    every = max(1, context.steps // LOOKS)
    looks = [look(step) for step in periodic(every, context.steps, every)[:-1]]
    return Course(Carry(start(context, seed)), context.trainer, [*looks, _stage(0, pruning)])
