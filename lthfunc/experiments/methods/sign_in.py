"""Sign-In: sparse weights as products of two factors, which change their signs more easily (Gadhikar et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.trained_masks import around, refuse_parts, trained_masks
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.parametrize import parametrized_state, trained_name
from lthfunc.trees.types import Masks, Params, TrainState

#: Rescalings in a training, unless --rescale-every says how often.
_TIMES = 20


def sign_in(plan: Plan, rescale_every: int | None) -> Plan:
    """Train m ⊙ w under a mask in place of the weights, and rescale both from time to time (their sec. 4).

    Rescaling leaves each product as it is, and makes m² - w² what it was at first. Weight decay is of both factors.
    """
    names = plan.model.prunable
    averages = {"lookahead": "--lookahead", "ema": "--ema", "swa": "average (lf.swa)"}
    refuse_parts(plan, "sign-in", averages, "averages factors one by one, and so other products")
    every = rescale_every or max(1, plan.steps // _TIMES)

    def draw(params: Params, seed: int) -> tuple[Params, Params]:
        return factors_of(params, {name: torch.ones_like(params[name], dtype=torch.bool) for name in names})

    def weights(trained: Params, fixed: Params) -> Params:
        factors = {factor_name(name) for name in names}
        others = {name: leaf for name, leaf in trained.items() if name not in factors}
        return {**others, **{name: trained[name] * trained[factor_name(name)] * fixed[name] for name in names}}

    def found(trained: Params, fixed: Params) -> tuple[Params, Masks]:
        return weights(trained, fixed), {name: fixed[name].bool() for name in names}

    optimizer = around(plan.trainer.work.optimizer, (), (_rescaling(names, every),))
    made = trained_masks(plan, "sign-in", draw, weights, weights, found, optimizer)

    def begin(start: TrainState, seed: int) -> TrainState:
        trained, fixed = factors_of(start.params, start.masks)
        return parametrized_state(made.trainer.work.model, trained, fixed, start.buffers, start.step)

    return plan._replace(through=(TrainedMasks(made.trainer, begin, made.ticket, dense=False),) * plan.rounds)


def factor_name(name: str) -> str:
    """What a weight's first factor is called among what is trained; no module has such a parameter."""
    return f"factor..{name}"


def balanced(product: Tensor) -> tuple[Tensor, Tensor]:
    """(m, w) with this product, m > 0 and m² - w² = 1: for small weights m is about 1, and rates stay as they are."""
    m = ((1 + (1 + 4 * product.square()).sqrt()) / 2).sqrt()
    return m, product / m


def factors_of(params: Params, masks: Masks) -> tuple[Params, Params]:
    """(params with the second factor in place of pruned leaves, and the first by names of their own; the masks)."""
    pairs = {name: balanced(params[name]) for name in masks}
    first, second = ({name: pair[place] for name, pair in pairs.items()} for place in (0, 1))
    fixed = {name: mask.to(params[name].dtype) for name, mask in masks.items()}
    return {**params, **second, **{factor_name(name): leaf for name, leaf in first.items()}}, fixed


def _rescaling(names: tuple[str, ...], every: int) -> Part:
    """Balanced factors after some steps."""

    def update(new: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        due, changed = (context.step + 1) % every == 0, dict(new)
        for name in names:
            keys = trained_name(factor_name(name)), trained_name(name)
            for key, leaf in zip(keys, balanced(new[keys[0]] * new[keys[1]]), strict=True):
                changed[key] = torch.where(due, leaf, new[key])
        return changed, state

    return Part("rescaling", lambda params, buffers: (), update, follows=True)
