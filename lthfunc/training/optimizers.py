"""Pure optimisers: (grads, state, params, step) -> (params, state). Their updates equal torch.optim's.

The learning-rate table is part of the state: it lies on the right device, is saved with the rest, and
replicates may have different ones. Adam's bias corrections come from running products of the betas, kept as
float64 scalars; a power worked out in the step would be recomputed for every weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.errors import invalid
from lthfunc.training.schedules import Schedule, as_schedule, at
from lthfunc.trees.ops import leaves, tree_map
from lthfunc.trees.types import Params


class Optimizer(NamedTuple):
    """init: params -> state; update: (grads, state, params, step) -> (new params, new state)."""

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params, Tensor], tuple[Params, Any]]


class SGDState(NamedTuple):
    """schedule: float64 (steps,). velocity: like params, or () without momentum."""

    schedule: Schedule
    velocity: Any


class AdamState(NamedTuple):
    """schedule: float64 (steps,). mean, variance: like params. beta1_power, beta2_power: float64 scalars, beta^t."""

    schedule: Schedule
    mean: Params
    variance: Params
    beta1_power: Tensor
    beta2_power: Tensor


def sgd(lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent, as torch.optim.SGD (dampening 0; L2 weight decay).

    Raises UserError for momentum or weight decay out of range, or Nesterov without momentum.
    """
    _check(momentum=momentum, weight_decay=weight_decay)
    if nesterov and momentum == 0:
        raise invalid("nesterov", nesterov, "a momentum above 0 with it")
    schedule = as_schedule(lr)

    def init(params: Params) -> SGDState:
        velocity = tree_map(torch.zeros_like, params) if momentum else ()
        return SGDState(schedule.to(_device(params)), velocity)

    def update(grads: Params, state: SGDState, params: Params, step: Tensor) -> tuple[Params, SGDState]:
        rate = at(state.schedule, step)
        grads = _decayed(grads, params, weight_decay)
        velocity = state.velocity
        if momentum:
            velocity = {name: velocity[name] * momentum + grads[name] for name in params}
            grads = {name: grads[name] + velocity[name] * momentum for name in params} if nesterov else velocity
        new = {name: p - rate.to(p.dtype) * grads[name] for name, p in params.items()}
        return new, SGDState(state.schedule, velocity)

    return Optimizer(init, update)


def adam(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam with L2 weight decay, as torch.optim.Adam (Kingma & Ba 2015, alg. 1)."""
    return _adam(lr, betas, eps, weight_decay, decoupled=False)


def adamw(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay, as torch.optim.AdamW (Loshchilov & Hutter 2019, alg. 2)."""
    return _adam(lr, betas, eps, weight_decay, decoupled=True)


def _adam(
    lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, *, decoupled: bool
) -> Optimizer:
    beta1, beta2 = betas
    _check(beta1=beta1, beta2=beta2, weight_decay=weight_decay)
    schedule = as_schedule(lr)

    def init(params: Params) -> AdamState:
        one = torch.ones((), dtype=torch.float64, device=_device(params))
        zeros = tree_map(torch.zeros_like, params)
        return AdamState(schedule.to(_device(params)), zeros, tree_map(torch.clone, zeros), one, one.clone())

    def update(grads: Params, state: AdamState, params: Params, step: Tensor) -> tuple[Params, AdamState]:
        rate = at(state.schedule, step)
        if not decoupled:
            grads = _decayed(grads, params, weight_decay)
        power1, power2 = state.beta1_power * beta1, state.beta2_power * beta2
        stride = rate / (1 - power1)
        spread = (1 - power2).sqrt()

        mean = {name: m + (grads[name] - m) * (1 - beta1) for name, m in state.mean.items()}
        variance = {name: v * beta2 + grads[name] * grads[name] * (1 - beta2) for name, v in state.variance.items()}

        def moved(name: str, p: Tensor) -> Tensor:
            if decoupled and weight_decay:
                p = p * (1 - rate * weight_decay).to(p.dtype)
            denominator = variance[name].sqrt() / spread.to(p.dtype) + eps
            return p - stride.to(p.dtype) * mean[name] / denominator

        new = {name: moved(name, p) for name, p in params.items()}
        return new, AdamState(state.schedule, mean, variance, power1, power2)

    return Optimizer(init, update)


def _decayed(grads: Params, params: Params, weight_decay: float) -> Params:
    if not weight_decay:
        return grads
    return {name: grad + params[name] * weight_decay for name, grad in grads.items()}


def _device(params: Params) -> torch.device:
    device: torch.device = leaves(params)[0].device
    return device


def _check(**values: float) -> None:
    for name, value in values.items():
        upper = float("inf") if name == "weight_decay" else 1.0
        if not 0 <= value < upper:
            raise invalid(name, value, "a number of at least 0" if name == "weight_decay" else "a number in [0, 1)")
