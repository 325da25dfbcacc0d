"""Train, prune, rewind, repeat: the methods of the lottery ticket papers and their nearest relatives."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.errors import UserError
from lthfunc.experiments.courses.context import MethodContext, start
from lthfunc.experiments.courses.course import Carry, Course, Method, Stage
from lthfunc.experiments.rewinding_and_controls import end_of
from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.budgets import balanced, erk
from lthfunc.sparsify.density_schedules import geometric
from lthfunc.sparsify.rewinding import finetuned, learning_rate_rewound, rewound
from lthfunc.sparsify.scores import Score, magnitude, random_scores
from lthfunc.sparsify.transforms import prune
from lthfunc.training.averaging import result_of
from lthfunc.training.schedules import ends_at
from lthfunc.trees.types import TrainState

#: (pruned network, what it may be rewound to) -> what trains next.
Rewinding = Callable[[TrainState, TrainState], TrainState]


@Method
def dense(context: MethodContext, seed: int) -> Course:
    """The whole network, for comparison."""
    return Course(Carry(start(context, seed)), context.trainer)


def iterative(
    rewinding: Rewinding = rewound,
    *,
    late: float = 0.0,
    one_shot: bool = False,
    score: Callable[[int], Score] = lambda seed: magnitude,
    allocate: Allocate = globally,
) -> Method:
    """Rounds of training and pruning at one rate, each round rewound. late: the anchor's share of the training."""

    @Method
    def method(context: MethodContext, seed: int) -> Course:
        dense = start(context, seed)
        anchor_step = round(late * context.steps)  # a share of few steps may be less than one
        stages = [Stage(lambda carry: anchor_step, lambda carry: carry._replace(anchor=carry.state))]

        def stage(density: float) -> Stage:
            pruning = prune(density=density, score=score(seed), allocate=allocate)

            def rewound(carry: Carry) -> Carry:
                assert carry.anchor is not None
                return carry._replace(state=rewinding(pruning(result_of(carry.state)), carry.anchor))

            return Stage(lambda carry: end_of(carry.state, context.steps), rewound)

        stages += [stage(density) for density in geometric(context.density, 1 if one_shot else context.rounds)]
        return Course(Carry(dense), context.trainer, stages)

    return method


def _rate(state: TrainState, anchor: TrainState) -> TrainState:
    return learning_rate_rewound(state, int(anchor.step))


def _tuned(state: TrainState, anchor: TrainState) -> TrainState:
    return finetuned(state)


def why_not_tuned(context: MethodContext) -> str | None:
    """Why fine-tuning at the last learning rate would be meaningless, or None."""
    schedule = context.schedule
    if schedule is None:
        return None
    if float(schedule[-1]) == float(schedule.max()):
        return "imp-tuned needs a decreasing --schedule: otherwise the last rate is also the first, as in imp-lr"
    if ends_at(schedule, 2 * context.steps) is not None:
        return "imp-tuned would train at the schedule's last rate, which is about 0; set a higher one with --lr-final"
    return None


def why_not_cyclic(context: MethodContext) -> str | None:
    """Why a training cannot be several cycles long, or None."""
    if context.steps >= context.cycles:
        return None
    return f"imp-cyclic needs a step for each of its {context.cycles} --cycles, but a training has {context.steps}"


@Method
def imp_tuned(context: MethodContext, seed: int) -> Course:
    """Fine-tuning (Renda et al. 2020, sec. 2): every round continues at the schedule's last rate. Raises UserError."""
    why = why_not_tuned(context)
    if why is not None:
        raise UserError(why)
    return iterative(_tuned).course(context, seed)


def _random(allocate: Allocate) -> Method:
    return iterative(_rate, score=lambda seed: random_scores(seed, "iterative"), allocate=allocate)


imp = iterative()
imp_late = iterative(late=0.05)
imp_lr = iterative(_rate)
one_shot = iterative(one_shot=True)
random_erk = _random(erk())
random_balanced = _random(balanced())


@Method
def cyclic(context: MethodContext, seed: int) -> Course:
    """`imp` with learning-rate rewinding, every training several cycles long (after Gadhikar et al. 2024).

    Their cycles are whole trainings, one after the other; here, all together are as long as one. Raises UserError if
    that has too few steps.
    """
    why = why_not_cyclic(context)
    if context.cyclic is None or why is not None:
        raise UserError(str(why))
    return imp_lr.course(context._replace(trainer=context.cyclic), seed)
