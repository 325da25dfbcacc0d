"""Gates and thresholds that learn which weights remain: soft thresholds, continuous sparsification, L0.

How many remain is a matter of penalties in the sources. Here the penalty's factor rises while the network is denser
than asked for, and is zero otherwise: gradient ascent on a Lagrange multiplier that restarts (Gallego-Posada et al.
2022, sec. 4.1). What then remains is exactly the density: the weights of the largest gates, or farthest above
thresholds.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lthfunc.experiments.iterative import Plan
from lthfunc.experiments.methods.trained_masks import Drawn, around, through, trained_masks
from lthfunc.experiments.trained_masks import TrainedMasks
from lthfunc.sparsify.scores import Scores
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.optimizers import table_like
from lthfunc.training.parametrize import WeightFunction, trained_and_fixed, trained_name
from lthfunc.training.per_parameter import scale_rates
from lthfunc.training.schedules import constant
from lthfunc.trees.ops import apply_masks, full_masks
from lthfunc.trees.rng import generator
from lthfunc.trees.types import Buffers, Masks, Params

#: Hard concrete gates (Louizos et al. 2018, sec. 4.1): temperature, limits of the stretched gate; and the chance of a
#: weight's gate to be closed at first, as in their wide ResNets.
TEMPERATURE, LOW, HIGH, CLOSED = 2 / 3, -0.1, 1.1, 0.3
#: Spread of the gates' parameters at first, as theirs.
SPREAD = 0.01
#: What continuous sparsification's temperature rises to from 1 (Savarese et al. 2020, sec. 4).
LAST_TEMPERATURE = 200.0
#: Where soft thresholds begin: the sigmoid of this is 4.5e-5.
FIRST_THRESHOLD = -10.0
#: How far a penalty's factor rises in a training of a network that stays dense: of soft thresholds, continuous
#: sparsification and L0.
THRESHOLD_ASCENT, CONTINUOUS_ASCENT, L0_ASCENT = 1.0, 20.0, 100.0
#: With an empty part between two dots, which no parameter of a module has in its name.
_TEMPERATURE_NAME = "temperature.."


class Gates(NamedTuple):
    """What a network's weights are made of. draw: what is trained. weights: the network's params in training.

    scores: of what is trained, by which weights remain; values: the remaining ones'. density: share of weights with
    open gates, a scalar; pull: the gradient of the penalty.
    """

    draw: Drawn
    weights: WeightFunction
    scores: Callable[[Params], Scores]
    values: Callable[[Params], Params]
    density: Callable[[Params], Tensor]
    pull: Callable[[Params], Params]


def soft_threshold(plan: Plan, gate_rate: float) -> Plan:
    """STR: sign(w) · max(0, |w| - sigmoid(s)), s trained for each layer (Kusupati et al. 2020, eq. 4 and 6).

    The penalty is their decay of s, towards 0.
    """
    names = plan.model.prunable

    def draw(params: Params, seed: int) -> tuple[Params, Params]:
        first = {gate_name(name): params[name].new_full((), FIRST_THRESHOLD) for name in names}
        return {**params, **first}, {}

    def margins(trained: Params) -> Params:
        return {name: trained[name].abs() - torch.sigmoid(trained[gate_name(name)]) for name in names}

    def values(trained: Params) -> Params:
        soft = {name: trained[name].sign() * leaf.relu() for name, leaf in margins(trained).items()}
        return {**without_gates(trained, names), **soft}

    def density(trained: Params) -> Tensor:
        return mean_of({name: (leaf > 0).to(leaf.dtype) for name, leaf in margins(trained).items()})

    def pull(trained: Params) -> Params:
        return {gate_name(name): trained[gate_name(name)] for name in names}

    gates = Gates(draw, lambda trained, fixed: values(trained), margins, values, density, pull)
    return gated(plan, "str", gates, gate_rate, THRESHOLD_ASCENT)


def continuous(plan: Plan, gate_rate: float) -> Plan:
    """w · sigmoid(βs) / sigmoid(0), s trained, β rising to 200 (Savarese et al. 2020, alg. 1, and their code's scale).

    The penalty is theirs, on the sum of gates.
    """
    names = plan.model.prunable

    def draw(params: Params, seed: int) -> tuple[Params, Params]:
        first = {gate_name(name): torch.zeros_like(params[name]) for name in names}
        return {**params, **first, _TEMPERATURE_NAME: params[names[0]].new_ones(())}, {}

    def openings(trained: Params) -> Params:
        sharpness = trained[_TEMPERATURE_NAME].detach()
        return {name: torch.sigmoid(sharpness * trained[gate_name(name)]) for name in names}

    def weights(trained: Params, fixed: Params) -> Params:
        soft = {name: trained[name] * 2 * leaf for name, leaf in openings(trained).items()}
        return {**without_gates(trained, names), **soft}

    def scores(trained: Params) -> Scores:
        return {name: trained[gate_name(name)] for name in names}

    def values(trained: Params) -> Params:
        return {**without_gates(trained, names), **{name: trained[name] * 2 for name in names}}

    def pull(trained: Params) -> Params:
        sharpness, each = trained[_TEMPERATURE_NAME], openings(trained)
        total = sum(leaf.numel() for leaf in each.values())
        return {gate_name(name): sharpness * leaf * (1 - leaf) / total for name, leaf in each.items()}

    gates = Gates(draw, weights, scores, values, lambda trained: mean_of(openings(trained)), pull)
    return gated(plan, "continuous-sparsification", gates, gate_rate, CONTINUOUS_ASCENT, _heating(plan.steps))


def l0(plan: Plan, gate_rate: float) -> Plan:
    """Hard concrete gates: weights times random gates that are often exactly 0 or 1 (Louizos et al. 2018, sec. 2.2).

    Evaluated by the gates' limits without noise (their eq. 13). The penalty is the expected number of open gates.
    """
    names = plan.model.prunable
    shift = TEMPERATURE * math.log(-LOW / HIGH)

    def draw(params: Params, seed: int) -> tuple[Params, Params]:
        noise = {name: torch.randn(params[name].shape, generator=generator(seed, "l0", name)) for name in names}
        first = math.log((1 - CLOSED) / CLOSED)
        gates = {gate_name(name): (first + SPREAD * leaf).to(params[name]) for name, leaf in noise.items()}
        return {**params, **gates}, {}

    def weights(trained: Params, fixed: Params) -> Params:
        def one(name: str) -> Tensor:
            gate = trained[gate_name(name)]
            drawn = torch.rand_like(gate).clamp(1e-6, 1 - 1e-6)
            return trained[name] * stretched(torch.sigmoid((torch.logit(drawn) + gate) / TEMPERATURE))

        return {**without_gates(trained, names), **{name: one(name) for name in names}}

    def scores(trained: Params) -> Scores:
        return {name: trained[gate_name(name)] for name in names}

    def values(trained: Params) -> Params:
        open_ = {name: stretched(torch.sigmoid(trained[gate_name(name)])) for name in names}
        return {**without_gates(trained, names), **{name: trained[name] * leaf for name, leaf in open_.items()}}

    def chances(trained: Params) -> Params:
        return {name: torch.sigmoid(trained[gate_name(name)] - shift) for name in names}

    def pull(trained: Params) -> Params:
        each = chances(trained)
        total = sum(leaf.numel() for leaf in each.values())
        return {gate_name(name): leaf * (1 - leaf) / total for name, leaf in each.items()}

    return gated(
        plan, "l0", Gates(draw, weights, scores, values, lambda trained: mean_of(chances(trained)), pull),
        gate_rate, L0_ASCENT,
    )  # fmt: skip


def stretched(gate: Tensor) -> Tensor:
    """A gate in (0, 1), stretched beyond both ends and cut off there (Louizos et al. 2018, eq. 11)."""
    return (gate * (HIGH - LOW) + LOW).clamp(0, 1)


def gate_name(name: str) -> str:
    """What a weight's gates, or its threshold, are called among what is trained; no module has such a parameter."""
    return f"gate..{name}"


def without_gates(trained: Params, names: tuple[str, ...]) -> Params:
    """The network's own params among what is trained."""
    others = {_TEMPERATURE_NAME, *map(gate_name, names)}
    return {name: leaf for name, leaf in trained.items() if name not in others}


def mean_of(leaves: Params) -> Tensor:
    """The mean of all entries of some leaves."""
    return torch.stack([leaf.sum() for leaf in leaves.values()]).sum() / sum(leaf.numel() for leaf in leaves.values())


def gated(plan: Plan, name: str, gates: Gates, gate_rate: float, ascent: float, *following: Part) -> Plan:
    """The plan with trainings of gates. following: parts of the optimiser, after all others."""

    def of_density(density: float) -> TrainedMasks:
        def found(trained: Params, fixed: Params) -> tuple[Params, Masks]:
            scores = gates.scores(trained)
            full = full_masks(scores, plan.model.prunable)  # on any device
            masks = plan.select(scores, full, plan.allocate(scores, full, 1 - density))
            return apply_masks(gates.values(trained), masks), masks

        def evaluated(trained: Params, fixed: Params) -> Params:
            return found(trained, fixed)[0]

        penalty = approaching(gates, density, ascent / plan.steps)
        rates = scale_rates({glob.escape(trained_name(gate_name(each))): gate_rate for each in plan.model.prunable})
        optimizer = around(plan.trainer.work.optimizer, (penalty,), (rates,), following)
        return trained_masks(plan, name, gates.draw, gates.weights, evaluated, found, optimizer)

    return through(plan, of_density)


def approaching(gates: Gates, density: float, rate: float) -> Part:
    """The gradient of the penalty, times a factor that rises with the excess of density, and restarts without one."""

    def init(params: Params, buffers: Buffers) -> Tensor:
        return torch.zeros_like(table_like(constant(1.0), params)[0])

    def update(grads: Params, factor: Tensor, context: ChainContext) -> tuple[Params, Tensor]:
        trained = trained_and_fixed(context.params, {})[0]
        excess = (gates.density(trained) - density).to(factor.dtype)
        factor = torch.where(excess > 0, factor + rate * excess, 0)
        pulls = {trained_name(name): leaf for name, leaf in gates.pull(trained).items()}
        pulled = {name: grad + factor * pulls[name] if name in pulls else grad for name, grad in grads.items()}
        return pulled, factor

    return Part("density", init, update, mixes=True)


def _heating(steps: int) -> Part:
    """The temperature after each step, whatever the optimiser makes of it."""
    name = trained_name(_TEMPERATURE_NAME)

    def update(new: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        share = (context.step + 1).to(torch.float64) / steps
        return {**new, name: (LAST_TEMPERATURE**share).to(new[name].dtype)}, state

    return Part("heating", lambda params, buffers: (), update, follows=True)
