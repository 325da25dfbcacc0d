"""An optimiser's state as the machine keeps it: loaded into a workspace, and read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lthfunc.sparse.updates import Numbers, moments_of, state_after
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.accumulation import AccumulateNumbers
from lthfunc.training.averaging import AverageState, EMANumbers
from lthfunc.training.chain import ChainState
from lthfunc.training.optimizers import AdamNumbers, SGDNumbers
from lthfunc.trees.types import Buffers, Params


def load_optimizer(workspace: Workspace, numbers: Sequence[Numbers], opt: Any) -> None:
    """Give a workspace the state that its program's update continues from."""
    sums = any(isinstance(part, AccumulateNumbers) for part in numbers)  # of a batch's parts
    rows = [torch.zeros_like(workspace.values)] if sums else []
    clock = torch.zeros(6, dtype=torch.float64)
    for part, state in zip(numbers, _states(opt), strict=True):
        rows += map(workspace.vector, moments_of(state))
        if isinstance(part, AdamNumbers):
            clock[:2], clock[3:5] = state.powers, torch.tensor(part.betas, dtype=torch.float64)
        elif isinstance(part, EMANumbers):
            clock[2], clock[5] = state.power, part.decay
            for name, at in workspace.averages.items():
                at.copy_(state.buffers[name].flatten())
        if isinstance(part, SGDNumbers | AdamNumbers):
            workspace.schedule = state.schedule.float().contiguous()
    workspace.kept = torch.stack(rows) if rows else workspace.kept
    workspace.clock = clock


def optimizer_after(
    workspace: Workspace,
    numbers: Sequence[Numbers],
    opt: Any,
    buffers: Buffers,
    steps: int,
    leaves: Callable[[Tensor], Params] | None = None,
) -> Any:
    """The public state after `steps` more steps. opt: the one before; buffers: those of now. leaves: makes the leaves
    of its trees from a number for each value, dense ones by default."""
    leaves = leaves or workspace.dense
    sums, clock = int(any(isinstance(part, AccumulateNumbers) for part in numbers)), workspace.clock
    rows, found = iter(workspace.kept[sums:]), []
    for part, state in zip(numbers, _states(opt), strict=True):
        moments = [leaves(next(rows)) for _ in moments_of(state)]
        if isinstance(part, EMANumbers):
            power = clock[2].clone()
            means = {name: at.clone().view_as(state.buffers[name]) for name, at in workspace.averages.items()}
            found.append(AverageState(
                moments[0], {name: means.get(name, leaf) for name, leaf in buffers.items()}, state.number + steps,
                part.weight_of(power).to(state.weight), power,
            ))  # fmt: skip
        elif isinstance(part, SGDNumbers | AdamNumbers):
            found.append(state_after(state, moments, clock[:2]))
        else:
            found.append(state)
    return ChainState(tuple(found)) if isinstance(opt, ChainState) else found[0]


def _states(opt: Any) -> tuple[Any, ...]:
    """Of the optimiser's parts."""
    return opt.parts if isinstance(opt, ChainState) else (opt,)
