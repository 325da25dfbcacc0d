"""Train, prune, rewind, and again: the lottery ticket's own methods and their nearest relatives."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.errors import UserError
from lthfunc.experiments.methods.setting import Method, Outcome, Setting, finished, start, trained
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


def dense(setting: Setting, seed: int) -> Outcome:
    """The whole network, for comparison."""
    return finished(setting, start(setting, seed), seed)


def iterative(
    rewinding: Rewinding = rewound,
    *,
    late: float = 0.0,
    one_shot: bool = False,
    score: Callable[[int], Score] = lambda seed: magnitude,
    allocate: Allocate = globally,
) -> Method:
    """Rounds of training and pruning at one rate, each round rewound. late: the anchor, as a share of the training."""

    def method(setting: Setting, seed: int) -> Outcome:
        anchor_step = round(late * setting.steps)
        state = start(setting, seed)
        if anchor_step:  # a share of few steps may be none at all
            state = trained(setting, seed, anchor_step)(state)
        anchor = state
        spent = anchor_step
        for density in geometric(setting.density, 1 if one_shot else setting.rounds):
            until = end_of(state, setting.steps)
            spent += until - int(state.step)
            state = trained(setting, seed, until)(state)
            state = rewinding(prune(density=density, score=score(seed), allocate=allocate)(state), anchor)
        return finished(setting, state, seed, spent)

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


def imp_tuned(setting: Setting, seed: int) -> Outcome:
    """Fine-tuning (Renda et al. 2020, sec. 2): every round goes on at the schedule's last rate. Raises UserError."""
    why = why_not_tuned(setting)
    if why is not None:
        raise UserError(why)
    return iterative(_tuned)(setting, seed)


def _random(allocate: Allocate) -> Method:
    return iterative(_rate, score=lambda seed: random_scores(seed, "iterative"), allocate=allocate)


imp = iterative()
imp_late = iterative(late=0.05)
imp_lr = iterative(_rate)
one_shot = iterative(one_shot=True)
random_erk = _random(erk())
random_balanced = _random(balanced())


def cyclic(setting: Setting, seed: int) -> Outcome:
    """`imp` with learning-rate rewinding, every training several cycles long (after Gadhikar et al. 2024).

    Their cycles are whole trainings, one after the other; here all of them together are as long as one. Raises
    UserError where that is too few steps.
    """
    why = why_not_cyclic(setting)
    if setting.cyclic is None or why is not None:
        raise UserError(str(why))
    return imp_lr(setting._replace(trainer=setting.cyclic), seed)
