"""Methods that settings describe, and the ablations of pruning at initialisation (Frankle et al. 2021, sec. 5)."""

from __future__ import annotations

from lthfunc.experiments.functions import ScoreContext
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.rewinding_and_controls import RoundContext, Start, reinit, shuffled_mask
from lthfunc.sparsify.allocation import fraction_to
from lthfunc.sparsify.density_schedules import geometric
from lthfunc.sparsify.gradient_scores import gradient_times_weight, mean_gradient
from lthfunc.sparsify.scores import Score, inverted_score
from lthfunc.training.loss_of_params import loss_of
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.types import TrainState


def unchanged(plan: Plan) -> Plan:
    """All is in the settings."""
    return plan


def several_rounds(plan: Plan, score_rounds: int) -> Plan:
    """Prune in several steps before the training, with scores computed before each (Tanaka et al. 2020, alg. 1)."""
    return plan._replace(prunings=score_rounds)


def force(plan: Plan, score_rounds: int) -> Plan:
    """Prune in several steps, each from all weights: by |gradient · w|, the gradient of the network pruned so far.

    Foresight connection sensitivity (de Jorge et al. 2021, eq. 6 and alg. 1, with their exponential schedule).
    """
    trainer = plan.trainer

    def pruner(dense: TrainState, now: RoundContext, density: float) -> TrainState:
        about = (plan.model, trainer.data, trainer.batch_size, 0.0, now.seed, now.number, dense, now.anchor)
        context = ScoreContext(*about, trainer.work.loss)
        gradient = mean_gradient(loss_of(plan.model, dense.buffers, trainer.work.loss), context.batches())
        masks = dense.masks
        for each in geometric(density, score_rounds):
            found = gradient(apply_masks(dense.params, masks), masks)
            worth = {name: gradient_times_weight(found[name], dense.params[name]).abs() for name in masks}
            keep = plan.allocate(worth, dense.masks, fraction_to(each, dense.masks))
            masks = plan.select(worth, dense.masks, keep)
        return dense._replace(params=apply_masks(dense.params, masks), masks=masks)

    return plan._replace(pruner=pruner)


def shuffled(plan: Plan, score_rounds: int) -> Plan:
    """As many weights in each layer, at other places."""
    return plan._replace(prunings=score_rounds, rewind=Start(shuffled_mask, at_anchor=True))


def with_new_weights(plan: Plan, score_rounds: int) -> Plan:
    """The masks on newly drawn weights."""
    return plan._replace(prunings=score_rounds, rewind=Start(reinit, at_anchor=False))


def inverted(plan: Plan) -> Plan:
    """Prune what the score values most."""

    def score(trained: TrainState, now: RoundContext) -> Score:
        return inverted_score(plan.score(trained, now))

    return plan._replace(score=score)
