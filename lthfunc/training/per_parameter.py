"""Learning rates and weight decay that differ from parameter to parameter, by their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lthfunc.arguments import public
from lthfunc.errors import invalid
from lthfunc.training.chain import ChainContext, Part
from lthfunc.training.optimizers import chosen, table_like
from lthfunc.training.schedules import Schedule, as_schedule, rate_at
from lthfunc.trees.model import Model
from lthfunc.trees.patterns import check_patterns
from lthfunc.trees.types import Buffers, Params


class DecayState(NamedTuple):
    """schedule: in the params' dtype, (steps,)."""

    schedule: Schedule


@public
def scale_rates(factors: Mapping[str, float]) -> Part:
    """Multiply the learning rates of parameters by factors: what their update would be is scaled, weight decay too.

    factors: by pattern of names, at least 0; the first pattern that matches counts, and other parameters keep their
    rate. 0 freezes a parameter. `layerwise_decay` makes such factors. Equals torch.optim's parameter groups with
    rates of their own. Returns a part of a `chain`, behind the optimiser. Raises UserError for a factor out of range
    and, when a state is made, for a pattern that matches no parameter.

    >>> params = {"fc.weight": torch.tensor([1.0]), "fc.bias": torch.tensor([1.0])}
    >>> optimizer = lf.chain(lf.sgd(0.1), lf.scale_rates({"*.bias": 2.0}))
    >>> grads = {"fc.weight": torch.tensor([1.0]), "fc.bias": torch.tensor([1.0])}
    >>> optimizer.update(grads, optimizer.init(params), params, torch.tensor(0))[0]
    {'fc.weight': tensor([0.9000]), 'fc.bias': tensor([0.8000])}
    """
    for factor in factors.values():
        if factor < 0:
            raise invalid("scale_rates: factors", factor, "a number of at least 0")
    known: dict[str, float] = {}  # matching each name with each pattern would cost more than a small step

    def factor_of(name: str) -> float:
        return next((factors[pattern] for pattern in factors if fnmatch.fnmatchcase(name, pattern)), 1.0)

    def init(params: Params, buffers: Buffers) -> tuple[()]:
        check_patterns("scale_rates: factors", factors, params)
        return ()

    def update(params: Params, state: Any, context: ChainContext) -> tuple[Params, Any]:
        def scaled(name: str, new: Tensor) -> Tensor:
            factor = known[name] if name in known else known.setdefault(name, factor_of(name))
            old = context.params[name]
            return new if factor == 1 else old + (new - old) * factor

        return {name: scaled(name, leaf) for name, leaf in params.items()}, state

    return Part("scale_rates", init, update, follows=True)


@public
def layerwise_decay(model: Model, decay: float, layers: Sequence[str] = ()) -> dict[str, float]:
    """Factors for `scale_rates` that fall from layer to layer, from the output to the input.

    Discriminative fine-tuning (Howard & Ruder 2018, sec. 3.2).

    decay: in (0, 1], of one layer relative to the next one. layers: patterns of parameter names, from the input to the
    output; by default every module with parameters of its own is a layer. Returns the factor of each parameter. Raises
    UserError for a decay out of range, and patterns that match no parameter or leave some out.

    >>> model = lf.from_module(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    >>> lf.layerwise_decay(model, 0.5)
    {'0.weight': 0.5, '0.bias': 0.5, '1.weight': 1.0, '1.bias': 1.0}
    """
    names = [name for name, _ in model.training.named_parameters()]
    check_patterns("layerwise_decay: layers", layers, names)
    modules = list(dict.fromkeys(name.rpartition(".")[0] for name in names))

    def layer_of(name: str) -> int:
        if not layers:
            return modules.index(name.rpartition(".")[0])
        found = next((number for number, each in enumerate(layers) if fnmatch.fnmatchcase(name, each)), None)
        if found is None:
            raise invalid("layerwise_decay: layers", ", ".join(layers), f"patterns of all parameters, also of {name}")
        return found

    last = len(layers or modules) - 1
    return {name: decay ** (last - layer_of(name)) for name in names}


@public
def decay_weights(
    weight_decay: float, lr: float | Schedule, decays: Callable[[str, Tensor], bool] | None = None
) -> Part:
    """Decoupled weight decay behind any optimiser: w ← w - lr · weight_decay · w (Loshchilov & Hutter 2019, alg. 1).

    weight_decay: at least 0. lr: a rate, or the optimiser's schedule of rates. decays: (name, parameter) -> whether its
    weights decay (`is_matrix`, or `all_but` patterns of names); None: all do. Returns a part of a `chain`, behind the
    optimiser. Raises UserError for numbers out of range.

    >>> params = {"w": torch.tensor([1.0])}
    >>> optimizer = lf.chain(lf.sgd(0.1), lf.decay_weights(0.5, 0.1))
    >>> optimizer.update({"w": torch.tensor([5.0])}, optimizer.init(params), params, torch.tensor(0))[0]
    {'w': tensor([0.4500])}
    """
    schedule = as_schedule(lr)

    def init(params: Params, buffers: Buffers) -> DecayState:
        return DecayState(table_like(schedule, params))

    def update(params: Params, state: DecayState, context: ChainContext) -> tuple[Params, DecayState]:
        share = rate_at(state.schedule, context.step) * weight_decay
        old = context.params
        return {
            name: leaf - old[name] * share if chosen(decays, name, leaf) else leaf for name, leaf in params.items()
        }, state

    return Part("decay_weights", init, update, follows=True)
