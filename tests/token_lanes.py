"""Tickets of networks of tokens and batches for them: what tests of their training on lanes of tokens share."""

from __future__ import annotations

import torch
from sparse_programs import random_masks
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.sparse.program import Epilogue, Program
from lthfunc.sparse.token_lanes import training_on_lanes
from lthfunc.sparse.workspace import Workspace
from lthfunc.training.cpu_threads import using_threads
from lthfunc.trees.types import TrainState


def network(net: nn.Module) -> lf.Model:
    return lf.from_module(net, tokens=True, init=lf.as_built, warn=False)


def ticket(model: lf.Model, density: float) -> TrainState:
    state = lf.init(model)
    masks = random_masks(model, density, 0)
    params = lf.apply_masks({name: leaf + 0.01 for name, leaf in state.params.items()}, masks)
    return state._replace(params=params, masks=masks)


def batch_of(n: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Tokens, and a target for each, every fifth of which counts for nothing."""
    draw = torch.Generator().manual_seed(length)
    x, y = (torch.randint(0, vocabulary, (n, length), generator=draw) for _ in range(2))
    y = torch.where(torch.rand(y.shape, generator=draw) < 0.2, -100, y)
    y[0, 0] = 1
    return x, y


def program_for(model: lf.Model, state: TrainState, n: int, length: int) -> Program:
    found = training_on_lanes(model, state, n, length, Epilogue())
    assert found is not None
    return found.program


def gradients_on(
    threads: int, state: TrainState, program: Program, batch: tuple[Tensor, Tensor], seed: int = 0
) -> Tensor:
    """Of all survivors, from the first step of a program."""
    x, y = batch
    workspace = Workspace(program, state.params, state.buffers)
    with using_threads(threads):
        workspace.run(x[None], y[None], seed=seed)
    return workspace.gradients
