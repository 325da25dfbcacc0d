"""Masks for a new initialisation, permuted as its own training would have it (Adnan et al. 2025)."""

from __future__ import annotations

from lthfunc.errors import UserError, invalid
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.rewinding_and_controls import RoundContext, Start, to_anchor
from lthfunc.sparsify.alignment import align_units, hidden_layers, permute_units
from lthfunc.sparsify.dependencies import dependencies
from lthfunc.training.averaging import result_of
from lthfunc.training.loop import take_steps
from lthfunc.trees.model import init
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.rng import key
from lthfunc.trees.types import TrainState


def rebasin(plan: Plan) -> Plan:
    """Prune the trained network, and train its mask on other initial weights: in the order of their own dense training.

    A second dense network is trained from the other weights, and the first one's hidden units are permuted to match it
    (their sec. 3, which matches activations; here weights, as Ainsworth et al. 2023, alg. 1). Of it only the order of
    the units is kept, and the weights at the point to rewind to. It is trained within the pruning: if a run is
    interrupted there, from its beginning again.
    """
    if plan.rounds != 1:
        raise invalid("--rounds", plan.rounds, "1 with --method rebasin, and one density")
    if plan.rewind.make is not to_anchor:
        raise UserError(
            "--rewind: --method rebasin trains early weights of another network, and takes init, step:K, epoch:K or "
            "percent:K"
        )
    if plan.trainer.work.collectives.world_size > 1:
        raise UserError("--method: rebasin trains its second dense network in one process, not on several ranks")
    found = dependencies(plan.model, plan.trainer.data.shape)
    try:
        hidden_layers(found)
    except UserError as error:
        raise UserError(f"--method: rebasin cannot permute this network ({str(error).partition(': ')[2]})") from None

    def pruner(trained: TrainState, now: RoundContext, density: float) -> TrainState:
        seed = key(now.seed, "rebasin")
        start = init(plan.model, seed, str(trained.step.device))
        if plan.anchor_step:
            start, _ = take_steps(plan.trainer, start, seed=seed, until=plan.anchor_step)
        dense = result_of(take_steps(plan.trainer, start, seed=seed, until=plan.steps)[0])
        order = align_units(trained.params, dense.params, found)
        masks = permute_units(plan.pruning(now.number, plan.score(trained, now))(trained).masks, order, found)
        return start._replace(params=apply_masks(start.params, masks), masks=masks, opt=())

    return plan._replace(
        pruner=pruner, rewind=Start(lambda pruned, now: pruned, at_anchor=True), pruning_steps=plan.steps,
    )  # fmt: skip
