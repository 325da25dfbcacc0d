"""Pure optimisers: (grads, state, params, step) -> (params, state). Their updates equal those of torch.optim.

The learning-rate schedule is part of the state: it is on the right device, is saved with the rest, and may differ
between replicates. Adam's bias corrections for a step are computed in the step before: read from the state, in the
params' dtype, they are two numbers to the compiled loop over the weights, which would otherwise repeat a division or a
power for every weight.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.training.schedules import Schedule, as_schedule, rate_at
from lthfunc.trees.ops import leaves, parts_squared, tree_map
from lthfunc.trees.types import Params

if TYPE_CHECKING:
    from lthfunc.training.chain import Part


#: (name, parameter) -> whether something applies to it, such as weight decay.
Choice = Callable[[str, Tensor], bool]


class SGDNumbers(NamedTuple):
    """The arguments of `sgd`, for engines that have their own code for its update."""

    momentum: float
    nesterov: bool
    weight_decay: float
    decays: Choice | None = None


class AdamNumbers(NamedTuple):
    """The arguments of `adam` or `adamw`, for engines that have their own code for its update."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    decays: Choice | None = None


class Optimizer(NamedTuple):
    """init: params -> state; update: (grads, state, params, step) -> (new params, new state).

    mixes: whether a weight's update depends on other weights or their gradients (as Muon's does), so that a pruned
    weight may move although its gradient is zero; the step then masks the weights again. numbers: set by the optimisers
    of this library; it lets an engine replace `update` by faster code with the same effect. parts: those of a `chain`,
    whose `init` also takes the buffers and whose `update` a `ChainContext`.
    """

    init: Callable[..., Any]
    update: Callable[..., tuple[Params, Any]]
    numbers: SGDNumbers | AdamNumbers | None = None
    mixes: bool = False
    parts: tuple[Part | Optimizer, ...] = ()


class SGDState(NamedTuple):
    """schedule: in the params' dtype, (steps,). velocity: like params, or () without momentum."""

    schedule: Schedule
    velocity: Any


class AdamState(NamedTuple):
    """schedule: in the params' dtype, (steps,). mean, variance: like params.

    powers: float64 (2,), both betas to the power of the next step's number, counted from 1. corrections: in the params'
    dtype, (2,): 1 / (1 - powers[0]) and 1 / sqrt(1 - powers[1]).
    """

    schedule: Schedule
    mean: Params
    variance: Params
    powers: Tensor
    corrections: Tensor


@public
def sgd(
    lr: float | Schedule,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decays: Callable[[str, Tensor], bool] | None = None,
) -> Optimizer:
    """Stochastic gradient descent, as torch.optim.SGD without dampening.

    lr: a rate, or a schedule of rates. momentum: in [0, 1), with or without nesterov. weight_decay: L2, at least 0, of
    the parameters that `decays` chooses (`is_matrix`, for example; None: all). Raises UserError for numbers out of
    range, or for nesterov without momentum.

    >>> params, optimizer = {"w": torch.tensor([1.0])}, lf.sgd(0.1)
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.5000])}
    """
    if nesterov and momentum == 0:
        raise invalid("nesterov", nesterov, "a momentum above 0 with it")
    schedule = as_schedule(lr)

    def init(params: Params) -> SGDState:
        velocity = tree_map(torch.zeros_like, params) if momentum else ()
        return SGDState(table_like(schedule, params), velocity)

    def update(grads: Params, state: SGDState, params: Params, step: Tensor) -> tuple[Params, SGDState]:
        rate = rate_at(state.schedule, step)
        grads = _decayed(grads, params, weight_decay, decays)
        velocity = state.velocity
        if momentum:
            velocity = {name: velocity[name] * momentum + grads[name] for name in params}
            grads = {name: grads[name] + velocity[name] * momentum for name in params} if nesterov else velocity
        new = {name: p - rate * grads[name] for name, p in params.items()}
        return new, SGDState(state.schedule, velocity)

    return Optimizer(init, update, SGDNumbers(momentum, nesterov, weight_decay, decays))


@public
def adam(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decays: Callable[[str, Tensor], bool] | None = None,
) -> Optimizer:
    """Adam with L2 weight decay, as torch.optim.Adam (Kingma & Ba 2015, alg. 1).

    lr: a rate, or a schedule of rates. betas: in [0, 1). eps, weight_decay: at least 0. decays: (name, parameter) ->
    whether its weights decay (`is_matrix`, for example); None: all do. Raises UserError for numbers out of range.

    >>> params, optimizer = {"w": torch.tensor([1.0])}, lf.adam(0.1)
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.9000])}
    """
    return _adam(lr, AdamNumbers(betas, eps, weight_decay, False, decays))


@public
def adamw(
    lr: float | Schedule,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    decays: Callable[[str, Tensor], bool] | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay, as torch.optim.AdamW (Loshchilov & Hutter 2019, alg. 2).

    lr: a rate, or a schedule of rates. betas: in [0, 1). eps, weight_decay: at least 0. decays: (name, parameter) ->
    whether its weights decay (`is_matrix`, for example); None: all do. Raises UserError for numbers out of range.

    >>> params, optimizer = {"w": torch.tensor([1.0])}, lf.adamw(0.1, weight_decay=0.5)
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.8500])}
    """
    return _adam(lr, AdamNumbers(betas, eps, weight_decay, True, decays))


def _adam(lr: float | Schedule, numbers: AdamNumbers) -> Optimizer:
    betas, eps, weight_decay, decoupled, decays = numbers
    beta1, beta2 = betas
    schedule = as_schedule(lr)

    def init(params: Params) -> AdamState:
        table = table_like(schedule, params)
        powers = torch.tensor(betas, dtype=torch.float64, device=table.device)
        zeros = tree_map(torch.zeros_like, params)
        return AdamState(table, zeros, tree_map(torch.clone, zeros), powers, corrections_of(powers).to(table.dtype))

    def update(grads: Params, state: AdamState, params: Params, step: Tensor) -> tuple[Params, AdamState]:
        rate = rate_at(state.schedule, step)
        if not decoupled:
            grads = _decayed(grads, params, weight_decay, decays)
        stride, widen = rate * state.corrections[0], state.corrections[1]

        mean = {name: m + (grads[name] - m) * (1 - beta1) for name, m in state.mean.items()}
        variance = {name: v * beta2 + parts_squared(grads[name]) * (1 - beta2) for name, v in state.variance.items()}

        def moved(name: str, p: Tensor) -> Tensor:
            if decoupled and weight_decay and chosen(decays, name, p):
                p = p * (1 - rate * weight_decay)
            if p.is_complex():  # as two real numbers each
                parts = torch.view_as_real(mean[name]) / (torch.view_as_real(variance[name]).sqrt() * widen + eps)
                return p - stride * torch.view_as_complex(parts)
            return p - stride * mean[name] / (variance[name].sqrt() * widen + eps)

        new = {name: moved(name, p) for name, p in params.items()}
        powers = torch.stack([state.powers[0] * beta1, state.powers[1] * beta2])
        following = corrections_of(powers).to(state.corrections.dtype)
        return new, AdamState(state.schedule, mean, variance, powers, following)

    return Optimizer(init, update, numbers)


def corrections_of(powers: Tensor) -> Tensor:
    """Adam's bias corrections, of the betas' powers."""
    rest = 1 - powers
    return torch.stack([1 / rest[0], 1 / rest[1].sqrt()])


def check_real(params: Params, optimizer: str) -> None:
    """Raise UserError for a complex parameter."""
    for name, leaf in params.items():
        if leaf.is_complex():
            raise UserError(
                f"optimizer: {optimizer} requires real parameters, but {name} is {leaf.dtype}; use sgd or adam"
            )


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter has two or more dimensions, as weights have, but not biases and parameters of normalisations.

    name: is not looked at. For `decays` of the optimisers: weight decay of weights alone.

    >>> lf.is_matrix("fc.weight", torch.ones(3, 4)), lf.is_matrix("fc.bias", torch.ones(3))
    (True, False)
    """
    return parameter.ndim > 1


@public
def all_but(*patterns: str) -> Callable[[str, Tensor], bool]:
    """Choose the parameters whose names match none of the patterns, for `decays` of the optimisers.

    patterns: as of a shell, such as "*.bias". Returns (name, parameter) -> whether it is chosen.

    >>> lf.all_but("*bias", "norm*")("fc.bias", torch.ones(3))
    False
    """
    return lambda name, parameter: not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def chosen(choice: Choice | None, name: str, parameter: Tensor) -> bool:
    """Whether something applies to a parameter; to all where nothing chooses."""
    return choice is None or choice(name, parameter)


def _decayed(grads: Params, params: Params, weight_decay: float, decays: Choice | None) -> Params:
    if not weight_decay:
        return grads
    return {
        name: grad + params[name] * weight_decay if chosen(decays, name, params[name]) else grad
        for name, grad in grads.items()
    }


def table_like(schedule: Schedule, params: Params) -> Schedule:
    """The schedule on the params' device and in their dtype.

    A float64 number would slow a loop over float32 weights. It is real, even where params are complex.
    """
    found: list[Tensor] = leaves(params)
    like = next((leaf for leaf in found if not leaf.is_complex()), found[0])
    return schedule.to(like.device, like.dtype if not like.is_complex() else like.real.dtype)
