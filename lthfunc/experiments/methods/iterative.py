"""Train, prune, rewind, and again: the lottery ticket's own methods and their nearest relatives."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.errors import UserError
from lthfunc.experiments.methods.course import Carry, Course, Method, Stage
from lthfunc.experiments.methods.setting import Setting, start
from lthfunc.experiments.rewinding_and_controls import end_of
from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.budgets import balanced, erk
from lthfunc.sparsify.density_schedules import geometric
from lthfunc.sparsify.rewinding import finetuned, learning_rate_rewound, rewound
from lthfunc.sparsify.scores import Score, magnitude, random_scores
from lthfunc.sparsify.transforms import prune
from lthfunc.training.schedules import ends_at
from lthfunc.trees.types import TrainState

#: (pruned network, what it may be rewound to) -> what trains next.
Rewinding = Callable[[TrainState, TrainState], TrainState]


@Method
def dense(setting: Setting, seed: int) -> Course:
    """The whole network, for comparison."""
    return Course(Carry(start(setting, seed)), setting.trainer)


def iterative(
    rewinding: Rewinding = rewound,
    *,
    late: float = 0.0,
    one_shot: bool = False,
    score: Callable[[int], Score] = lambda seed: magnitude,
    allocate: Allocate = globally,
) -> Method:
    """Rounds of training and pruning at one rate, each round rewound. late: the anchor, as a share of the training."""

    @Method
    def method(setting: Setting, seed: int) -> Course:
        dense = start(setting, seed)
        anchor_step = round(late * setting.steps)  # a share of few steps may be none at all
        stages = [Stage(lambda carry: anchor_step, lambda carry: carry._replace(anchor=carry.state))]

        def stage(density: float) -> Stage:
            pruning = prune(density=density, score=score(seed), allocate=allocate)

            def rewound(carry: Carry) -> Carry:
                assert carry.anchor is not None
                return carry._replace(state=rewinding(pruning(carry.state), carry.anchor))

            return Stage(lambda carry: end_of(carry.state, setting.steps), rewound)

        stages += [stage(density) for density in geometric(setting.density, 1 if one_shot else setting.rounds)]
        return Course(Carry(dense), setting.trainer, stages)

    return method


def _rate(state: TrainState, anchor: TrainState) -> TrainState:
    return learning_rate_rewound(state, int(anchor.step))


def _tuned(state: TrainState, anchor: TrainState) -> TrainState:
    return finetuned(state)


def why_not_tuned(setting: Setting) -> str | None:
    """Why fine-tuning at the last learning rate would be no method of its own; None where it is one."""
    schedule = setting.schedule
    if schedule is None:
        return None
    if float(schedule[-1]) == float(schedule.max()):
        return "imp-tuned needs a --schedule that falls: else the last rate is the first one too, as in imp-lr"
    if ends_at(schedule, 2 * setting.steps) is not None:
        return "imp-tuned would train at the schedule's last rate, which is about 0; set a higher one with --lr-final"
    return None


def why_not_cyclic(setting: Setting) -> str | None:
    """Why a training cannot be several cycles long; None where it can."""
    if setting.steps >= setting.cycles:
        return None
    return f"imp-cyclic needs a step for each of its {setting.cycles} --cycles, and a training has {setting.steps}"


@Method
def imp_tuned(setting: Setting, seed: int) -> Course:
    """Fine-tuning (Renda et al. 2020, sec. 2): every round goes on at the schedule's last rate. Raises UserError."""
    why = why_not_tuned(setting)
    if why is not None:
        raise UserError(why)
    return iterative(_tuned).course(setting, seed)


def _random(allocate: Allocate) -> Method:
    return iterative(_rate, score=lambda seed: random_scores(seed, "iterative"), allocate=allocate)


imp = iterative()
imp_late = iterative(late=0.05)
imp_lr = iterative(_rate)
one_shot = iterative(one_shot=True)
random_erk = _random(erk())
random_balanced = _random(balanced())


@Method
def cyclic(setting: Setting, seed: int) -> Course:
    """`imp` with learning-rate rewinding, every training several cycles long (after Gadhikar et al. 2024).

    Their cycles are whole trainings, one after the other; here all of them together are as long as one. Raises
    UserError where that is too few steps.
    """
    why = why_not_cyclic(setting)
    if setting.cyclic is None or why is not None:
        raise UserError(str(why))
    return imp_lr.course(setting._replace(trainer=setting.cyclic), seed)
