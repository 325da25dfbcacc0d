"""An optimiser as an instruction over all survivors at once, and its state as the machine keeps it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.builder import Builder
from lthfunc.sparse.kernels.instructions import BY_ROWS
from lthfunc.training.optimizers import AdamNumbers, AdamState, SGDNumbers, SGDState, corrections_of

Numbers = SGDNumbers | AdamNumbers
#: Numbers that a thread should have to update, at least.
_SHARE = 8_192


def add_update(b: Builder, numbers: Numbers) -> None:
    """Add the optimiser's instruction."""
    total = sum(leaf.size for leaf in b.leaves.values())
    shares = max(1, total // _SHARE)
    columns = {"first": 0, "last": total}
    if isinstance(numbers, AdamNumbers):
        first = b.numbers([*numbers.betas, numbers.eps, numbers.weight_decay])
        columns |= {"beta1": first, "beta2": first + 1, "epsilon": first + 2, "weight_decay": first + 3}
        columns |= {"decoupled": int(numbers.decoupled)}
    else:
        first = b.numbers([numbers.momentum, numbers.weight_decay])
        columns |= {"momentum": first, "weight_decay": first + 1, "nesterov": int(numbers.nesterov)}
    b.emit(lambda: ("adam" if isinstance(numbers, AdamNumbers) else "sgd", BY_ROWS, shares, columns))


def moments_of(state: Any) -> list[Any]:
    """The state's trees shaped like params: none, velocity, or mean and variance."""
    if isinstance(state, AdamState):
        return [state.mean, state.variance]
    assert isinstance(state, SGDState)
    return [state.velocity] if state.velocity != () else []


def clock_of(state: Any, numbers: Numbers) -> Tensor:
    """float64 (4,): powers of Adam's betas, and the betas; nothing for SGD."""
    if not isinstance(numbers, AdamNumbers):
        return torch.zeros(0, dtype=torch.float64)
    return torch.cat([state.powers, torch.tensor(numbers.betas, dtype=torch.float64)])


def state_after(state: Any, moments: list[Any], clock: Tensor) -> Any:
    """The public state again, from what the machine kept."""
    if isinstance(state, AdamState):
        powers = clock[:2].clone()
        return AdamState(state.schedule, moments[0], moments[1], powers, corrections_of(powers).to(state.corrections))
    return SGDState(state.schedule, moments[0] if moments else ())
