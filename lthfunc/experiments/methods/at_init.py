"""Methods that settings describe, and the ablations of pruning at initialisation (Frankle et al. 2021, sec. 5)."""

from __future__ import annotations

from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.rewinding_and_controls import RoundContext, Start, reinit, shuffled_mask
from lthfunc.sparsify.scores import Score, inverted_score
from lthfunc.trees.types import TrainState


def unchanged(plan: Plan) -> Plan:
    """All is in the settings."""
    return plan


def several_rounds(plan: Plan, synflow_rounds: int) -> Plan:
    """Prune in several steps before the training, with scores computed before each (Tanaka et al. 2020, alg. 1)."""
    return plan._replace(prunings=synflow_rounds)


def shuffled(plan: Plan, synflow_rounds: int = 1) -> Plan:
    """As many weights in each layer, at other places."""
    return plan._replace(prunings=synflow_rounds, rewind=Start(shuffled_mask, at_anchor=True))


def with_new_weights(plan: Plan, synflow_rounds: int = 1) -> Plan:
    """The masks on newly drawn weights."""
    return plan._replace(prunings=synflow_rounds, rewind=Start(reinit, at_anchor=False))


def inverted(plan: Plan) -> Plan:
    """Prune what the score values most."""

    def score(trained: TrainState, now: RoundContext) -> Score:
        return inverted_score(plan.score(trained, now))

    return plan._replace(score=score)
