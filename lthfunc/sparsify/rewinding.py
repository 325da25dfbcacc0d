"""Where a pruned network starts again, and the controls it is measured against."""

from __future__ import annotations

import torch

from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Masks, Params, TrainState


def rewound(params: Params, anchor: Params, masks: Masks) -> Params:
    """The anchor's values under the masks: W_k * m (Frankle & Carbin 2019, sec. 1; Frankle et al. 2020, sec. 3).

    `params`, the trained values, are forgotten; they are an argument so that all rewindings look alike.
    """
    return apply_masks(anchor, masks)


def restart(state: TrainState, anchor: TrainState) -> TrainState:
    """`state`'s masks on the anchor's params, buffers and step; a fresh optimiser.

    With an anchor taken at step k, the schedule and the data order go on from step k.
    """
    return anchor._replace(params=rewound(state.params, anchor.params, state.masks), masks=state.masks, opt=())


def finetune(state: TrainState) -> TrainState:
    """No rewinding: the trained values go on under the masks, from step 0 with a fresh optimiser."""
    params = apply_masks(state.params, state.masks)
    return state._replace(params=params, opt=(), step=torch.zeros_like(state.step))


def reinitialised(state: TrainState, model: Model, seed: int) -> TrainState:
    """`state`'s masks on newly drawn params (the random reinitialisation of Frankle & Carbin 2019, sec. 2)."""
    params, buffers = model.init(seed)
    device = state.step.device
    params = {name: value.to(device) for name, value in params.items()}
    buffers = {name: value.to(device) for name, value in buffers.items()}
    return TrainState(apply_masks(params, state.masks), buffers, state.masks, (), torch.zeros_like(state.step))


def shuffled(masks: Masks, seed: int) -> Masks:
    """Each layer's mask with its entries in random order: the same counts, other places."""

    def shuffle(name: str) -> torch.Tensor:
        mask = masks[name]
        order = permutation(mask.numel(), seed, "shuffled-mask", name).to(mask.device)
        return mask.flatten()[order].view(mask.shape)

    return {name: shuffle(name) for name in masks}
