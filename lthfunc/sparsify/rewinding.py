"""Where a pruned network starts again, and the controls that it is compared with."""

from __future__ import annotations

import torch

from lthfunc.arguments import public
from lthfunc.trees.model import Model
from lthfunc.trees.ops import apply_masks, to_device
from lthfunc.trees.rng import permutation
from lthfunc.trees.types import Masks, TrainState


@public
def rewound(state: TrainState, anchor: TrainState) -> TrainState:
    """Weight rewinding: the anchor's params, buffers and step under the masks of `state`, with a fresh optimiser.

    An anchor at step 0 gives the winning ticket of Frankle & Carbin 2019, sec. 1; an anchor at step k gives late
    rewinding (Frankle et al. 2020, sec. 3), with which the learning-rate schedule and the data order continue from k.

    >>> start = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> ticket = lf.rewound(lf.prune(density=0.5)(start), anchor=start)
    >>> lf.density(ticket.masks), int(ticket.step)
    (0.5, 0)
    """
    return anchor._replace(params=apply_masks(anchor.params, state.masks), masks=state.masks, opt=())


@public
def learning_rate_rewound(state: TrainState, step: int = 0) -> TrainState:
    """Learning-rate rewinding: `state` keeps its weights and goes back to `step` (Renda et al. 2020, sec. 2).

    The learning-rate schedule and the data order then continue from that step; the optimiser starts afresh. Raises
    UserError for a negative step.

    >>> trained = lf.init(lf.from_module(nn.Linear(4, 2)))._replace(step=torch.tensor(100))
    >>> int(lf.learning_rate_rewound(trained).step)
    0
    """
    return finetuned(state)._replace(step=torch.full_like(state.step, step))


@public
def finetuned(state: TrainState) -> TrainState:
    """Fine-tuning: `state` keeps its weights and its step (Han et al. 2015, sec. 3; Renda et al. 2020, sec. 2).

    Past the end of the learning-rate schedule its last rate applies; the optimiser starts afresh.

    >>> trained = lf.init(lf.from_module(nn.Linear(4, 2)))._replace(step=torch.tensor(100))
    >>> int(lf.finetuned(trained).step)
    100
    """
    return state._replace(params=apply_masks(state.params, state.masks), opt=())


@public
def constant_sign(state: TrainState, anchor: TrainState) -> TrainState:
    """`rewound`, but each weight is its anchor's sign times its layer's standard deviation (Zhou et al. 2019, sec. 4).

    The deviation is that of all of the anchor's weights in the layer, also of those that `state` has pruned.

    >>> start = lf.init(lf.from_module(nn.Linear(4, 2)))
    >>> len(lf.constant_sign(start, anchor=start).params["weight"].abs().unique())
    1
    """
    spread = {name: anchor.params[name].std(correction=0) for name in state.masks}
    params = {name: leaf.sign() * spread[name] if name in spread else leaf for name, leaf in anchor.params.items()}
    return rewound(state, anchor._replace(params=params))


@public
def reinitialised(state: TrainState, model: Model, seed: int) -> TrainState:
    """Random reinitialisation: newly drawn params under the masks of `state`, at step 0.

    Frankle & Carbin 2019, sec. 2. model, seed: what the params are drawn from.

    >>> model = lf.from_module(nn.Linear(4, 2))
    >>> lf.count(lf.reinitialised(lf.prune(density=0.5)(lf.init(model)), model, seed=1).masks)
    Count(kept=4, total=8)
    """
    params, buffers = to_device((model.redraw or model.init)(seed), state.step.device)
    return TrainState(apply_masks(params, state.masks), buffers, state.masks, (), torch.zeros_like(state.step))


@public
def shuffled_masks(masks: Masks, seed: int) -> Masks:
    """Each of the masks with its entries permuted at random, by `seed`: the same counts at other positions.

    >>> int(lf.shuffled_masks({"w": torch.tensor([True, True, False, False])}, seed=0)["w"].sum())
    2
    """

    orders = {name: permutation(mask.numel(), seed, "shuffled-mask", name) for name, mask in masks.items()}
    return {name: mask.flatten()[orders[name].to(mask.device)].view(mask.shape) for name, mask in masks.items()}


@public
def inverted_masks(masks: Masks) -> Masks:
    """The complement of each of the masks: what was pruned remains.

    >>> lf.inverted_masks({"w": torch.tensor([True, False])})
    {'w': tensor([False,  True])}
    """
    return {name: ~mask for name, mask in masks.items()}
