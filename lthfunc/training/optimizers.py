"""Pure optimisers: (grads, state, params, step) -> (params, state). Their updates equal those of torch.optim.

The learning-rate schedule is part of the state: it is on the right device, is saved with the rest, and may differ
between replicates. Adam's bias corrections for a step are computed in the step before: read from the state, in the
params' dtype, they are two numbers to the compiled loop over the weights, which would otherwise repeat a division or a
power for every weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError, invalid
from lthfunc.tracebacks import is_library_function
from lthfunc.training.schedules import Schedule, as_schedule, rate_at
from lthfunc.trees.ops import leaves, parts_squared, tree_map
from lthfunc.trees.types import Params


class SGDNumbers(NamedTuple):
    """The arguments of `sgd`, for engines that have their own code for its update."""

    momentum: float
    nesterov: bool
    weight_decay: float


class AdamNumbers(NamedTuple):
    """The arguments of `adam` or `adamw`, for engines that have their own code for its update."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool


class Optimizer(NamedTuple):
    """init: params -> state; update: (grads, state, params, step) -> (new params, new state).

    mixes: whether a weight's update depends on other weights or their gradients (as Muon's does), so that a pruned
    weight may move although its gradient is zero; the step then masks the weights again. numbers: set by the optimisers
    of this library; it lets an engine replace `update` by faster code with the same effect.
    """

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params, Tensor], tuple[Params, Any]]
    numbers: SGDNumbers | AdamNumbers | None = None
    mixes: bool = False


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
def sgd(lr: float | Schedule, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent, as torch.optim.SGD without dampening.

    lr: a rate, or a schedule of rates. momentum: in [0, 1), with or without nesterov. weight_decay: L2, at least 0.
    Raises UserError for numbers out of range, or for nesterov without momentum.

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
        grads = _decayed(grads, params, weight_decay)
        velocity = state.velocity
        if momentum:
            velocity = {name: velocity[name] * momentum + grads[name] for name in params}
            grads = {name: grads[name] + velocity[name] * momentum for name in params} if nesterov else velocity
        new = {name: p - rate * grads[name] for name, p in params.items()}
        return new, SGDState(state.schedule, velocity)

    return Optimizer(init, update, SGDNumbers(momentum, nesterov, weight_decay))


@public
def adam(
    lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Adam with L2 weight decay, as torch.optim.Adam (Kingma & Ba 2015, alg. 1).

    lr: a rate, or a schedule of rates. betas: in [0, 1). eps, weight_decay: at least 0. Raises UserError for numbers
    out of range.

    >>> params, optimizer = {"w": torch.tensor([1.0])}, lf.adam(0.1)
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.9000])}
    """
    return _adam(lr, betas, eps, weight_decay, decoupled=False)


@public
def adamw(
    lr: float | Schedule, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01
) -> Optimizer:
    """Adam with decoupled weight decay, as torch.optim.AdamW (Loshchilov & Hutter 2019, alg. 2).

    lr: a rate, or a schedule of rates. betas: in [0, 1). eps, weight_decay: at least 0. Raises UserError for numbers
    out of range.

    >>> params, optimizer = {"w": torch.tensor([1.0])}, lf.adamw(0.1, weight_decay=0.5)
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.8500])}
    """
    return _adam(lr, betas, eps, weight_decay, decoupled=True)


def _adam(
    lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, *, decoupled: bool
) -> Optimizer:
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
            grads = _decayed(grads, params, weight_decay)
        stride, widen = rate * state.corrections[0], state.corrections[1]

        mean = {name: m + (grads[name] - m) * (1 - beta1) for name, m in state.mean.items()}
        variance = {name: v * beta2 + parts_squared(grads[name]) * (1 - beta2) for name, v in state.variance.items()}

        def moved(name: str, p: Tensor) -> Tensor:
            if decoupled and weight_decay:
                p = p * (1 - rate * weight_decay)
            if p.is_complex():  # as two real numbers each
                parts = torch.view_as_real(mean[name]) / (torch.view_as_real(variance[name]).sqrt() * widen + eps)
                return p - stride * torch.view_as_complex(parts)
            return p - stride * mean[name] / (variance[name].sqrt() * widen + eps)

        new = {name: moved(name, p) for name, p in params.items()}
        powers = torch.stack([state.powers[0] * beta1, state.powers[1] * beta2])
        following = corrections_of(powers).to(state.corrections.dtype)
        return new, AdamState(state.schedule, mean, variance, powers, following)

    return Optimizer(init, update, AdamNumbers(betas, eps, weight_decay, decoupled))


def corrections_of(powers: Tensor) -> Tensor:
    """Adam's bias corrections, of the betas' powers."""
    rest = 1 - powers
    return torch.stack([1 / rest[0], 1 / rest[1].sqrt()])


def check_optimizer_state(state: Any, optimizer: Optimizer, params: Params) -> Any:
    """A fresh state of the optimiser, or None where both are a user's.

    Raises UserError where `state` is another optimiser's, or of other params.
    """
    if not is_library_function(optimizer.init) and not is_library_function(type(state)):
        return None  # what a user's own keeps is its own affair
    mine = optimizer.init(params)
    if type(state) is not type(mine) or (is_library_function(type(state)) and not _alike(state, mine)):
        raise UserError(
            f"optimizer: the state's optimiser state ({type(state).__name__}) belongs to another optimiser or network; "
            "state._replace(opt=()) starts with a fresh one"
        )
    return mine


def _alike(state: Any, mine: Any) -> bool:
    """Whether two states have the same leaves, besides the schedules, of which each may have its own."""
    if optree.tree_structure(state) != optree.tree_structure(mine):
        return False
    return all(
        one.shape == other.shape for one, other in zip(leaves(_with_tables(state, mine)), leaves(mine), strict=True)
    )


def with_rates_of(state: Any, optimizer: Optimizer, params: Params) -> Any:
    """An optimiser's state with the schedules of `optimizer`. Raises UserError where it is another optimiser's."""
    mine = check_optimizer_state(state, optimizer, params)
    return _with_tables(state, mine) if is_library_function(optimizer.init) else state


def _with_tables(state: Any, other: Any) -> Any:
    if not hasattr(state, "_fields"):
        return state
    parts = zip(state._fields, state, other, strict=True)
    return type(state)(*(new if name == "schedule" else _with_tables(old, new) for name, old, new in parts))


def check_real(params: Params, optimizer: str) -> None:
    """Raise UserError for a complex parameter."""
    for name, leaf in params.items():
        if leaf.is_complex():
            raise UserError(
                f"--optimizer: {optimizer} requires real parameters, but {name} is {leaf.dtype}; use sgd or adam"
            )


def _decayed(grads: Params, params: Params, weight_decay: float) -> Params:
    if not weight_decay:
        return grads
    return {name: grad + params[name] * weight_decay for name, grad in grads.items()}


def table_like(schedule: Schedule, params: Params) -> Schedule:
    """The schedule on the params' device and in their dtype.

    A float64 number would slow a loop over float32 weights. It is real, even where params are complex.
    """
    found: list[Tensor] = leaves(params)
    like = next((leaf for leaf in found if not leaf.is_complex()), found[0])
    return schedule.to(like.device, like.dtype if not like.is_complex() else like.real.dtype)
