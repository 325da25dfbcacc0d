"""Pruning at initialisation, with the ablations of Frankle et al. 2021."""

from __future__ import annotations

from collections.abc import Callable

from lthfunc.experiments.courses.context import MethodContext, loss, samples, start
from lthfunc.experiments.courses.course import Carry, Course, Method
from lthfunc.sparsify.allocation import Allocate, globally
from lthfunc.sparsify.budgets import balanced, erk, uniform
from lthfunc.sparsify.density_schedules import geometric, prune_to_densities
from lthfunc.sparsify.gradient_scores import grasp as grasp_score, snip as snip_score
from lthfunc.sparsify.rewinding import reinitialised, shuffled_masks
from lthfunc.sparsify.scores import Score, inverted_score, magnitude, random_scores
from lthfunc.sparsify.synflow import synflow as synflow_score
from lthfunc.training.loss_of_params import forward_of
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState

#: What scores an untrained network.
Scoring = Callable[[MethodContext, TrainState, int], Score]
#: What an ablation makes of the pruned network.
Ablation = Callable[[MethodContext, TrainState, int], TrainState]

#: Batches of SNIP and GraSP.
_BATCHES = 10


def at_init(
    scoring: Scoring, *, rounds: int | None = 1, allocate: Allocate = globally, then: Ablation | None = None
) -> Method:
    """Score the untrained network, prune it, and train the rest. rounds: None for those of SynFlow."""

    @Method
    def method(context: MethodContext, seed: int) -> Course:
        dense = start(context, seed)
        score = scoring(context, dense, seed)
        densities = geometric(context.density, context.synflow_rounds if rounds is None else rounds)
        sparse = prune_to_densities(densities, score=score, allocate=allocate)(dense)
        if then is not None:
            sparse = then(context, sparse._replace(params=dense.params), seed)
        masked = sparse._replace(params=apply_masks(sparse.params, sparse.masks))
        return Course(Carry(masked), context.trainer)

    return method


def by_snip(context: MethodContext, state: TrainState, seed: int) -> Score:
    """On ten batches."""
    return snip_score(loss(context, state), samples(context, seed, _BATCHES, "snip"))


def by_grasp(context: MethodContext, state: TrainState, seed: int) -> Score:
    """On ten batches."""
    return grasp_score(loss(context, state), samples(context, seed, _BATCHES, "grasp"))


def by_synflow(context: MethodContext, state: TrainState, seed: int) -> Score:
    """Without data."""
    return synflow_score(forward_of(context.model, state.buffers), context.shape)


def by_magnitude(context: MethodContext, state: TrainState, seed: int) -> Score:
    """Of the initial weights."""
    return magnitude


def at_random(context: MethodContext, state: TrainState, seed: int) -> Score:
    """Uniform."""
    return random_scores(seed, "at-init")


def inverted(scoring: Scoring) -> Scoring:
    """Prune what the score values most."""
    return lambda context, state, seed: inverted_score(scoring(context, state, seed))


def shuffled_mask(context: MethodContext, state: TrainState, seed: int) -> TrainState:
    """The same numbers in each layer, at other places."""
    return state._replace(masks=shuffled_masks(state.masks, key(seed, "ablation-shuffle")))


def new_weights(context: MethodContext, state: TrainState, seed: int) -> TrainState:
    """The masks on newly drawn weights."""
    return reinitialised(state, context.model, key(seed, "ablation-reinit"))


snip, grasp = at_init(by_snip), at_init(by_grasp)
synflow = at_init(by_synflow, rounds=None)
magnitude_at_init = at_init(by_magnitude)
random_uniform = at_init(at_random, allocate=uniform())
random_erk = at_init(at_random, allocate=erk())
random_balanced = at_init(at_random, allocate=balanced())
snip_shuffled, snip_reinit = at_init(by_snip, then=shuffled_mask), at_init(by_snip, then=new_weights)
snip_inverted = at_init(inverted(by_snip))
grasp_shuffled, grasp_reinit = at_init(by_grasp, then=shuffled_mask), at_init(by_grasp, then=new_weights)
grasp_inverted = at_init(inverted(by_grasp))
synflow_shuffled = at_init(by_synflow, rounds=None, then=shuffled_mask)
synflow_reinit = at_init(by_synflow, rounds=None, then=new_weights)
synflow_inverted = at_init(inverted(by_synflow))
