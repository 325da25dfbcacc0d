"""A plain training loop of PyTorch, and optimisers of this library as those of PyTorch, for tests of `lf.attach`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import small
import torch
from torch import Tensor, nn

import lthfunc as lf
from lthfunc.training.batches import batches
from lthfunc.training.optimizers import AdamState, SGDState
from lthfunc.trees.types import TrainState

DATA, BATCH, SEED, STEPS = small.data(count=90), 10, 3, 12
MODEL = lf.from_module(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)))


class Twin(torch.optim.Optimizer):
    """A third party's optimiser: `lf.sgd` or `lf.adam`, with the moments of each parameter in PyTorch's place."""

    def __init__(self, module: nn.Module, made: lf.Optimizer) -> None:
        super().__init__(module.parameters(), {"lr": 0.0})  # which schedules ask for
        self.names, self.made = [name for name, _ in module.named_parameters()], made

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            closure()
        leaves = dict(zip(self.names, self.param_groups[0]["params"], strict=True))
        params = {name: leaf.detach() for name, leaf in leaves.items()}
        grads = {name: leaf.grad for name, leaf in leaves.items()}
        state = self.made.init(params)
        held = [self.state[leaf] for leaf in leaves.values()]
        step = torch.tensor(held[0].get("step", 0))
        if held[0]:
            kept = {key: dict(zip(self.names, values, strict=True)) for key, values in zip(held[0], zip(*(
                each.values() for each in held), strict=True), strict=True)}  # fmt: skip
            state = state._replace(**{key: kept[key] for key in ("velocity", "mean", "variance") if key in kept})
            if isinstance(state, AdamState):
                state = state._replace(powers=held[0]["powers"], corrections=held[0]["corrections"])
        new, state = self.made.update(grads, state, params, step)
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(new[name])
                self.state[leaf] = {"step": int(step) + 1, **_of(state, name)}


def _of(state: SGDState | AdamState, name: str) -> dict[str, Tensor]:
    if isinstance(state, SGDState):
        return {"velocity": state.velocity[name]} if state.velocity else {}
    shared = {"powers": state.powers, "corrections": state.corrections}
    return {"mean": state.mean[name], "variance": state.variance[name], **shared}


def module_of(state: TrainState) -> nn.Module:
    """A plain module with the weights of a state, in training mode."""
    return lf.to_module(lf.ticket(state), MODEL).train()


def loop(module: nn.Module, optimizer: torch.optim.Optimizer, start: int, stop: int) -> None:
    """Somebody's training loop, with the batches that `lf.train` would take."""
    for x, y in batches(DATA.train, BATCH, SEED, start, stop):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()


def trained(optimizer: lf.Optimizer, steps: int = STEPS) -> Callable[[TrainState], TrainState]:
    """This library's training, with the same batches."""
    return lf.train(MODEL, DATA, optimizer=optimizer, steps=steps, batch_size=BATCH, seed=SEED)


def folded(optimizer: lf.Optimizer, start: TrainState, plan: Sequence[tuple[int, Any]]) -> TrainState:
    """The functional path of a plan: a fold of training to a step and changing the network."""
    state = start
    for step, change in plan:
        state = change(trained(optimizer, step)(state) if step > int(state.step) else state)
    return trained(optimizer)(state)
