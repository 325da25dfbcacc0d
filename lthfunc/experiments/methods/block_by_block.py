"""Trained networks pruned block by block, for the inputs that their layers get: SparseGPT and Wanda."""

from __future__ import annotations

from lthfunc.catalog.pruning import BLOCK_BUDGETS
from lthfunc.errors import UserError
from lthfunc.experiments.functions import ScoreContext
from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.rewinding_and_controls import RoundContext
from lthfunc.sparsify.sequential import (
    LayerPruning,
    block_layers,
    prune_sequentially,
    sparsegpt_pruning,
    wanda_pruning,
)
from lthfunc.sparsify.structures import unstructured
from lthfunc.trees.global_rng import seeded_generators
from lthfunc.trees.model import init
from lthfunc.trees.ops import count
from lthfunc.trees.types import Masks, TrainState


def sparsegpt(plan: Plan, blocks: tuple[str, ...], block_budgets: str) -> Plan:
    """What remains of each row makes up for what is pruned (Frantar & Alistarh 2023, alg. 1)."""
    return _block_by_block(plan, sparsegpt_pruning(), blocks, block_budgets)


def wanda(plan: Plan, blocks: tuple[str, ...], block_budgets: str) -> Plan:
    """By |w| · ‖x‖, within each output unless --structure asks for another one (Sun et al. 2024, alg. 1)."""
    select = None if plan.select is unstructured else plan.select
    return _block_by_block(plan, wanda_pruning(select), blocks, block_budgets)


def _block_by_block(plan: Plan, pruning: LayerPruning, blocks: tuple[str, ...], block_budgets: str) -> Plan:
    """The plan with another pruning, which is tried on two examples. Raises UserError."""
    budgets, trainer = BLOCK_BUDGETS.make(block_budgets, {}), plan.trainer

    def pruned(state: TrainState, examples: ScoreContext, density: float, how: LayerPruning) -> TrainState:
        inputs, share = [x for x, _ in examples.batches()], _density_within(plan, state.masks, density, blocks)
        return prune_sequentially(plan.model, inputs, share, pruning=how, budgets=budgets, blocks=blocks)(state)

    def pruner(trained: TrainState, now: RoundContext, density: float) -> TrainState:
        about = (plan.model, trainer.data, trainer.batch_size, 0.0, now.seed, now.number, trained, now.anchor)
        return pruned(trained, ScoreContext(*about), density, pruning)

    dense = init(plan.model, 0, str(trainer.data.train.y.device))
    try:
        few = ScoreContext(plan.model, trainer.data, 2, 0.0, 0, 1, dense, dense, batch_count=1)
        with seeded_generators(0, dense.step.device):  # for layers that draw
            tried = pruning if pruning.diagonal else wanda_pruning()  # two examples are too few for surgery
            pruned(dense, few, plan.density_of(plan.rounds), tried)
    except UserError as error:
        raise (UserError(f"--{error}") if str(error).startswith("blocks: ") else error) from None
    return plan._replace(pruner=pruner)


def _density_within(plan: Plan, masks: Masks, density: float, blocks: tuple[str, ...]) -> float:
    """The density of the layers within blocks at which the whole network has one, as all others stay as they are."""
    layers = block_layers(plan.model, blocks).values()
    whole, within = count(masks), count({name: masks[name] for names in layers for name in names})
    outside = whole.kept - within.kept
    found = (density * whole.total - outside) / within.total
    if found <= 0:
        raise UserError(
            f"--density: {density:g} of {whole.total:,} weights are no more than the {outside:,} outside of blocks, "
            "which stay; use a larger one, or name more layers by --blocks"
        )
    return found
