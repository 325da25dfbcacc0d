"""Where a pruned network starts again, and the controls it is measured against."""

from __future__ import annotations

import torch

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Masks, Params, TrainState


@public
def rewound(params: Params, anchor: Params, masks: Masks) -> Params:
    """The anchor's values under the masks: W_k * m (Frankle & Carbin 2019, sec. 1; Frankle et al. 2020, sec. 3).

    `params`, the trained values, are forgotten; they are an argument so that all rewindings look alike.
    """
    return apply_masks(anchor, masks)


@public
def restart(state: TrainState, anchor: TrainState) -> TrainState:
    """`state`'s masks on the anchor's params, buffers and step; a fresh optimiser.

    With an anchor taken at step k, the schedule and the data order go on from step k.
    """
    return anchor._replace(params=rewound(state.params, anchor.params, state.masks), masks=state.masks, opt=())


@public
def finetune(state: TrainState) -> TrainState:
    """No rewinding: the trained values go on under the masks, from step 0 with a fresh optimiser."""
    return learning_rate_rewound(state)


@public
def reinitialised(state: TrainState, model: Model, seed: int) -> TrainState:
    """`state`'s masks on newly drawn params (the random reinitialisation of Frankle & Carbin 2019, sec. 2)."""
    params, buffers = model.init(seed)
    device = state.step.device
    params = {name: value.to(device) for name, value in params.items()}
    buffers = {name: value.to(device) for name, value in buffers.items()}
    return TrainState(apply_masks(params, state.masks), buffers, state.masks, (), torch.zeros_like(state.step))


@public
def shuffled_masks(masks: Masks, seed: int) -> Masks:
    """Each layer's mask with its entries in random order: the same counts, other places."""

    def shuffle(name: str) -> torch.Tensor:
        mask = masks[name]
        order = permutation(mask.numel(), seed, "shuffled-mask", name).to(mask.device)
        return mask.flatten()[order].view(mask.shape)

    return {name: shuffle(name) for name in masks}


@public
def finetuned(state: TrainState) -> TrainState:
    """Fine-tuning (Han et al. 2015; Renda et al. 2020, sec. 2): the trained values and the step go on as they are.

    The learning-rate table then stays at its last entry. The optimiser starts afresh.
    """
    return state._replace(params=apply_masks(state.params, state.masks), opt=())


@public
def learning_rate_rewound(state: TrainState, step: int = 0) -> TrainState:
    """Learning-rate rewinding (Renda et al. 2020, sec. 2): trained values go on, schedule and data from `step`."""
    if step < 0:
        raise invalid("step", step, "a step of at least 0")
    return finetuned(state)._replace(step=torch.full_like(state.step, step))


@public
def constant_sign(state: TrainState, anchor: TrainState) -> TrainState:
    """`restart`, each surviving weight at its anchor's sign times its layer's spread (Zhou et al. 2019, sec. 4).

    The spread is the standard deviation of the anchor's whole layer.
    """
    spread = {name: anchor.params[name].std(correction=0) for name in state.masks}
    params = {name: leaf.sign() * spread[name] if name in spread else leaf for name, leaf in anchor.params.items()}
    return restart(state, anchor._replace(params=params))


@public
def inverted_masks(masks: Masks) -> Masks:
    """The complement of masks: what was pruned stays."""
    return {name: ~mask for name, mask in masks.items()}
