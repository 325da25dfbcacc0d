"""Networks whose weights are computed from what is trained, such as masks with straight-through gradients.

A parametrized network is a `Model` like any other: training, engines and evaluation work unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lthfunc.arguments import public
from lthfunc.trees.model import Model
from lthfunc.trees.module_calls import functional_call
from lthfunc.trees.ops import full_masks
from lthfunc.trees.types import Buffers, Params, TrainState

#: (what is trained, what is fixed) -> the network's params; or those of several networks, which share a batch.
WeightFunction = Callable[[Params, Params], Params | Sequence[Params]]
#: seed -> (what is trained, what is fixed, buffers).
InitFunction = Callable[[int], tuple[Params, Params, Buffers]]

_TRAINED, _FIXED, _BUFFERS = "trained_", "fixed_", "buffers_"


@public
def parametrized(
    model: Model, name: str, draw: InitFunction, training: WeightFunction, evaluating: WeightFunction
) -> Model:
    """The model with its params computed from other, trained tensors, such as scores of which a mask is made.

    name: of the new model. draw: seed -> (what is trained, what is fixed, buffers). training, evaluating: (what is
    trained, what is fixed) -> the network's params, in the two modes; of several networks, each then computes its part
    of the batch, as many consecutive examples as the others. The new model's params are what is trained and
    its buffers the rest, under names that `trained_part` turns back.

    >>> model = lf.from_module(nn.Linear(4, 2, bias=False))
    >>> def masked(scores, fixed):
    ...     return {"weight": fixed["weight"] * lf.straight_through((scores["weight"] > 0).float(), scores["weight"])}
    >>> def draw(seed):
    ...     return {"weight": torch.randn(2, 4)}, model.init(seed)[0], {}
    >>> list(lf.init(lf.parametrized(model, "supermask", draw, masked, masked)).params)
    ['trained_weight']
    """
    sample = draw(0)

    def init(seed: int) -> tuple[Params, Buffers]:
        trained, fixed, buffers = draw(seed)
        return _named(_TRAINED, trained), {**_named(_FIXED, fixed), **_named(_BUFFERS, buffers)}

    return Model(
        name=name,
        training=_Net(model.training, sample, training).train(),
        evaluating=_Net(model.evaluating, sample, evaluating).eval(),
        prunable=tuple(_named(_TRAINED, {key: sample[0][key] for key in model.prunable})),
        init=init,
        tokens=model.tokens,
        output=trained_name(model.output),
    )


def trained_name(name: str) -> str:
    """What a parametrized model calls a trained tensor."""
    return _safe(_TRAINED, name)


def trained_part(params: Params, names: Mapping[str, object]) -> Params:
    """The trained tensors among a parametrized model's params, by the original model's names."""
    return {name: params[trained_name(name)] for name in names}


def trained_and_fixed(params: Params, buffers: Buffers) -> tuple[Params, Params]:
    """(what is trained, what is fixed) of a parametrized model, by the original model's names."""
    return _unnamed(_TRAINED, params), _unnamed(_FIXED, buffers)


def parametrized_state(model: Model, trained: Params, fixed: Params, buffers: Buffers, step: Tensor) -> TrainState:
    """The state of a parametrized model at a step, with these parts."""
    params = _named(_TRAINED, trained)
    return TrainState(
        params, {**_named(_FIXED, fixed), **_named(_BUFFERS, buffers)}, full_masks(params, model.prunable), (), step
    )


def buffers_part(buffers: Buffers, names: Mapping[str, object]) -> Buffers:
    """The original model's buffers among those of a parametrized model."""
    return {name: buffers[_safe(_BUFFERS, name)] for name in names}


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard` with the gradient of `soft`: the straight-through estimator (Bengio et al. 2013).

    >>> soft = torch.tensor(0.3, requires_grad=True)
    >>> lf.straight_through(torch.tensor(1.0), soft).backward()
    >>> soft.grad
    tensor(1.)
    """
    return soft + (hard - soft).detach()


def top_k_mask(scores: Tensor, keep: int) -> Tensor:
    """1 at the `keep` largest scores, 0 elsewhere, in their dtype; all entries tied at the threshold are 1."""
    flat = scores.detach().flatten()
    if keep == 0:
        return torch.zeros_like(scores)
    return (scores.detach() >= flat.kthvalue(len(flat) - keep + 1).values).to(scores.dtype)


class _Net(nn.Module):
    """The network, whose own params are not this module's: they are computed when it is called."""

    def __init__(self, net: nn.Module, sample: tuple[Params, Params, Buffers], weights: WeightFunction) -> None:
        super().__init__()
        self._net = [copy.deepcopy(net)]  # in a list, so that its params are not registered here
        self._weights = weights
        self._names = tuple(tuple(part) for part in sample)
        for prefix, part in zip((_TRAINED, _FIXED, _BUFFERS), sample, strict=True):
            for name, leaf in _named(prefix, part).items():
                if prefix == _TRAINED:
                    self.register_parameter(name, nn.Parameter(leaf.clone(), requires_grad=False))
                else:
                    self.register_buffer(name, leaf.clone())

    def forward(self, x: Tensor) -> Tensor:
        trained, fixed, buffers = (
            {name: getattr(self, _safe(prefix, name)) for name in names}
            for prefix, names in zip((_TRAINED, _FIXED, _BUFFERS), self._names, strict=True)
        )
        found = self._weights(trained, fixed)
        several = [found] if isinstance(found, Mapping) else found
        # A few examples, as those that a network is tried on, may be fewer than the networks.
        parts = zip(several, x.chunk(len(several)), strict=False)
        outputs = [functional_call(self._net[0], {**params, **buffers}, (part,)) for params, part in parts]
        first: Tensor = outputs[0]
        return first if len(outputs) == 1 else torch.cat(outputs)


def _safe(prefix: str, name: str) -> str:
    return prefix + name.replace(".", ":")


def _named(prefix: str, tree: Params) -> Params:
    return {_safe(prefix, name): leaf for name, leaf in tree.items()}


def _unnamed(prefix: str, tree: Params) -> Params:
    return {name.removeprefix(prefix).replace(":", "."): leaf for name, leaf in tree.items() if name.startswith(prefix)}
