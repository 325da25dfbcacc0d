"""Averages of weights along a training. The network that training gives is then the averaged one (`averaged`).

They are part of the optimiser's state, so files, engines and replicates know nothing of them, and a fresh optimiser
begins a new average. The buffers' floating numbers, such as the statistics of batch normalisation, are averaged with
the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import UserError
from lthfunc.training.chain import ChainContext, ChainState, Part
from lthfunc.training.optimizers import table_like
from lthfunc.training.schedules import constant
from lthfunc.trees.ops import clone
from lthfunc.trees.packed_states import PackedState
from lthfunc.trees.types import Buffers, Params, TrainState

S = TypeVar("S", bound=TrainState | PackedState)


class AverageState(NamedTuple):
    """params, buffers: the averages so far. number: int64 scalar, how many networks went into them.

    weight: in the params' dtype, scalar, what the next one weighs. power: float64 scalar, an exponential average's
    decay to the power of the next one's number, counted from 1.
    """

    params: Params
    buffers: Buffers
    number: Tensor
    weight: Tensor
    power: Tensor


class EMANumbers(NamedTuple):
    """The arguments of `ema`, for engines that have their own code for it."""

    decay: float
    debias: bool

    def weight_of(self, power: Tensor) -> Tensor:
        """What the network weighs whose number `power` belongs to."""
        if self.debias:
            return (1 - self.decay) / (1 - power)
        later = torch.full_like(power, 1 - self.decay)
        return torch.where(power == self.decay, torch.ones_like(power), later)  # the first one begins the average


@public
def ema(decay: float, debias: bool = True) -> Part:
    """Keep an exponential moving average of the weights, which is the network that training then gives (`averaged`).

    decay: in [0, 1); the average is about that of the last 1 / (1 - decay) steps. debias: whether it is divided by
    1 - decay^t, so that it is an average from the first step on (Kingma & Ba 2015, sec. 7.2); otherwise it begins with
    the weights of the first step, which then weigh decay^(t - 1), as in torch.optim.swa_utils. Source: Polyak &
    Juditsky 1992. Returns a part of a `chain`, behind the optimiser. Raises UserError for a decay out of range.

    >>> params = {"w": torch.tensor([1.0])}
    >>> optimizer = lf.chain(lf.sgd(0.1), lf.ema(0.5))
    >>> new, state = optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))
    >>> state.parts[1].params
    {'w': tensor([0.5000])}
    """
    numbers = EMANumbers(decay, debias)

    def follow(state: AverageState, context: ChainContext) -> tuple[Tensor, AverageState]:
        power = state.power * decay
        weight = numbers.weight_of(power).to(state.weight.dtype)
        return state.weight, state._replace(number=state.number + 1, weight=weight, power=power)

    return _average("ema", follow, decay, numbers)


@public
def swa(start: int, every: int = 1) -> Part:
    """Keep the mean of the weights of step `start` and of each `every` steps after it (Izmailov et al. 2018, alg. 1).

    start: at least 0; before that step, the average is the last step's weights. every: at least 1, the cycle length c.
    The paper computes the statistics of batch normalisation anew for the averaged weights; here they are averaged like
    the weights. The average is the network that training then gives (`averaged`). Returns a part of a `chain`, behind
    the optimiser. Raises UserError for numbers out of range.

    >>> params = {"w": torch.tensor([1.0])}
    >>> optimizer = lf.chain(lf.sgd(0.1), lf.swa(start=1))
    >>> state = optimizer.init(params)
    >>> for step in range(2):
    ...     params, state = optimizer.update({"w": torch.tensor([5.0])}, state, params, torch.tensor(step))
    >>> state.parts[1].params
    {'w': tensor([0.2500])}
    """

    def follow(state: AverageState, context: ChainContext) -> tuple[Tensor, AverageState]:
        since = context.step + 1 - start
        counts = (since >= 0) & (since % every == 0)
        number = state.number + counts
        weight = torch.where(counts | (state.number == 0), state.weight, 0)
        return weight, state._replace(number=number, weight=1 / (number + 1).to(state.weight.dtype))

    return _average("swa", follow, 1.0, None)


@public
def averaged(state: TrainState) -> TrainState:
    """The state with the averaged weights and buffers in place of the last step's: the network that training gives.

    state: whose optimiser is a chain with `ema` or `swa`. The optimiser state stays. Raises UserError where it keeps no
    average.

    >>> model, optimizer = lf.from_module(nn.Linear(4, 2)), lf.chain(lf.sgd(0.1), lf.ema(0.9))
    >>> state = lf.with_optimizer(lf.init(model), optimizer)
    >>> lf.same_bits(lf.averaged(state).params, state.params)
    True
    """
    found = _average_in(state.opt)
    if found is None:
        raise UserError("averaged: the optimiser keeps no average of the weights; lf.chain(…, lf.ema(0.999)) does")
    return state._replace(params=found.params, buffers=found.buffers)


def result_of(state: S) -> S:
    """The network that training gives: the averaged one where the optimiser keeps an average, else the last step's."""
    found = _average_in(state.opt)
    return state if found is None else cast("S", state._replace(params=found.params, buffers=found.buffers))


def _average_in(opt: Any) -> AverageState | None:
    """The average of a chain, the last one if there are several."""
    parts = opt.parts if isinstance(opt, ChainState) else ()
    return next((part for part in reversed(parts) if isinstance(part, AverageState)), None)


#: (state, context) -> (the weight of the network of now, the state after it but for the averages).
_Follow = Callable[[AverageState, ChainContext], tuple[Tensor, AverageState]]


def _average(name: str, follow: _Follow, power: float, numbers: EMANumbers | None) -> Part:
    def init(params: Params, buffers: Buffers) -> AverageState:
        weight = torch.ones_like(table_like(constant(1.0), params)[0])
        first = torch.full_like(weight, power, dtype=torch.float64)
        return AverageState(clone(params), clone(buffers), torch.zeros_like(weight, dtype=torch.int64), weight, first)

    def update(params: Params, state: AverageState, context: ChainContext) -> tuple[Params, AverageState]:
        weight, after = follow(state, context)

        def moved(average: Tensor, leaf: Tensor) -> Tensor:
            if not (leaf.is_floating_point() or leaf.is_complex()):
                return leaf  # such as a count of batches
            return average + (leaf - average) * weight.to(leaf.real.dtype)

        means = {key: moved(state.params[key], leaf) for key, leaf in params.items()}
        found = state.buffers if context.buffers is None else context.buffers
        return params, after._replace(
            params=means, buffers={key: moved(leaf, found[key]) for key, leaf in state.buffers.items()}
        )

    return Part(name, init, update, follows=True, numbers=numbers)
